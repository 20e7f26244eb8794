"""Forwards: which addresses they take, how many connections, and what ends with them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from calling import OPERATOR, House, house
from machines import fake_program, publish_no_image
from microvm_orchestrator import errors
from microvm_orchestrator.forwards import CONNECTIONS_MOST, Forwards, parse, written
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.model.access import Principal, Role, Scope
from microvm_orchestrator.model.forward import FORWARD
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.store.every import every_record

PATIENCE_S = 60


@asynccontextmanager
async def box_in(tmp_path: Path) -> AsyncGenerator[House]:
    """A service with one machine that runs; it ends with the block."""
    publish_no_image(ImageStore(tmp_path / "images"), "embedded")
    with anyio.fail_after(PATIENCE_S):
        async with house(tmp_path, machines={"qemu": str(fake_program(tmp_path))}) as here:
            await here.ask("machine_define", name="box", memory_mib=64)
            await here.ask("machine_start", machine="box")
            try:
                yield here
            finally:
                await here.ask("machine_kill", machine="box")


async def forward(here: House, guest: str, **more: Any) -> dict[str, Any]:
    return await here.ask("forward_add", machine="box", guest=guest, **more)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("80", "127.0.0.1:80"),
        ("db.example:5432", "db.example:5432"),
        ("[::1]:80", "[::1]:80"),
        ("/run/socket", "/run/socket"),
    ],
)
def test_an_address_is_a_port_a_host_and_port_or_a_path(text: str, means: str) -> None:
    assert written(parse(text)) == means


@pytest.mark.parametrize("text", ["", "x", ":80", "1:65536", "-1", "\u0661", "/" + "x" * 107])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidInput):
        parse(text)


async def test_what_is_listened_on_is_the_hosts_own_and_free(tmp_path: Path) -> None:
    async with box_in(tmp_path) as here:
        with pytest.raises(errors.InvalidInput, match="no address of the host itself"):
            await forward(here, "80", host="0.0.0.0:0")
        taken = await forward(here, "80")
        with pytest.raises(errors.AlreadyExists, match="cannot be listened on"):
            await forward(here, "81", host=taken["host"])
        there = tmp_path / "there"
        there.touch()
        with pytest.raises(errors.AlreadyExists):
            await forward(here, "80", host=str(there))
        assert there.is_file()
        assert len((await here.ask("forward_list", machine="box"))["items"]) == 1


async def test_sockets_of_the_host_are_for_administrators_and_the_daemons_for_nobody(
    tmp_path: Path,
) -> None:
    async with box_in(tmp_path) as here:
        for direction in ("to_guest", "to_host"):
            with pytest.raises(errors.Denied):
                await here.ask(
                    "forward_add",
                    by=OPERATOR,
                    machine="box",
                    guest="80",
                    host=str(tmp_path / "any"),
                    direction=direction,
                )
        own = f"{tmp_path}/./socket"
        (tmp_path / "socket").touch()
        (tmp_path / "linked").hardlink_to(tmp_path / "socket")
        for path in (own, str(tmp_path / "linked")):
            with pytest.raises(errors.Denied, match="own socket"):
                await forward(here, "80", host=path, direction="to_host")


async def test_who_sees_only_its_own_opens_nothing_that_the_host_reaches_to_its_guests(
    tmp_path: Path,
) -> None:
    narrow = Principal("narrow", Role.OPERATOR, Scope(everything=False))
    async with box_in(tmp_path) as here:
        await here.ask("machine_define", by=narrow, name="mine", memory_mib=64)
        asked = {"machine": "mine", "guest": "80", "host": "192.0.2.1:80", "direction": "to_host"}
        with pytest.raises(errors.Denied, match="what the host reaches"):
            await here.ask("forward_add", by=narrow, **asked)


async def test_a_socket_of_the_host_leads_to_one_in_the_guest_and_goes_with_the_forward(
    tmp_path: Path,
) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    async with box_in(tmp_path) as here, await anyio.create_unix_listener(far) as listener:

        async def serve(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                async for data in stream:
                    await stream.send(data)

        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, serve)
            # The fake's guest is this host.
            made = await forward(here, str(far), host=str(near))
            assert near.stat().st_mode & 0o777 == 0o600
            async with await anyio.connect_unix(near) as stream:
                await stream.send(b"hello")
                await stream.send_eof()
                assert b"".join([data async for data in stream]) == b"hello"
            streams = [await anyio.connect_unix(near) for _ in range(CONNECTIONS_MOST + 1)]
            for stream in streams[:-1]:
                await stream.send(b"x")
                assert await stream.receive() == b"x"
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await streams[-1].receive()
            (told,) = (await here.ask("forward_list"))["items"]
            assert (told["state"], told["connections"]) == ("active", CONNECTIONS_MOST)
            assert "refused" in told["reason"]
            await here.ask("forward_remove", forward_id=made["forward_id"])
            for stream in streams:
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
                await stream.aclose()
            assert not near.exists()
            group.cancel_scope.cancel()


async def test_a_forward_that_cannot_listen_in_the_guest_says_why(tmp_path: Path) -> None:
    async with box_in(tmp_path) as here:
        path = str(tmp_path / "no" / "such" / "folder")
        made = await forward(here, path, host="1", direction="to_host")
        assert made["state"] == "failed"
        assert made["reason"]


async def test_a_forward_goes_with_its_machine_and_can_be_listed_meanwhile(tmp_path: Path) -> None:
    async with box_in(tmp_path) as here:
        await here.ask("machine_define", name="other", memory_mib=64)
        machine = await here.ask("machine_get", machine="other")
        made = await here.ask("forward_add", machine="other", guest="80")
        assert (made["state"], made["reason"]) == ("waiting", "its machine is defined")
        # As it is between the two halves of a deletion.
        await here.service.host.machines.delete("other", SYSTEM)
        (told,) = (await here.ask("forward_list"))["items"]
        assert (told["state"], told["reason"]) == ("failed", "its machine is being deleted")
        await here.service.host.forwards.forget_machine(machine["machine_id"])
        assert (await here.ask("forward_list"))["items"] == []


async def test_a_forward_whose_machine_was_deleted_when_the_daemon_died_is_forgotten(
    tmp_path: Path,
) -> None:
    async with box_in(tmp_path) as here:
        await here.ask("machine_define", name="other", memory_mib=64)
        await here.ask("forward_add", machine="other", guest="80")
        kept = await forward(here, "81")
        await here.service.host.machines.delete("other", SYSTEM)
        again = Forwards(here.store, here.service.host.machines, tmp_path / "socket")
        await here.ask("forward_remove", forward_id=kept["forward_id"])
        async with again.running():
            assert again.visible(SYSTEM) == []
        assert await every_record(here.store, FORWARD, SYSTEM) == []
