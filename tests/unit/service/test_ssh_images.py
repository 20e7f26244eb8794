"""Foreign images as callers meet them: reached by their own SSH servers, with nothing of ours."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from calling import House, house
from machines import LONG_S
from microvm_orchestrator import errors, places
from microvm_orchestrator.images.manifest import RunnerManifest, SshLogin, digest_of, read_manifest
from microvm_orchestrator.machine.ssh import fingerprint
from microvm_orchestrator.machine.ssh.keys import make_key
from ssh_guest import Foreign, make_foreign
from sshd import login_name


async def add(kept: House, foreign: Foreign, **more: Any) -> dict[str, Any]:
    asked = {
        "name": "foreign",
        "runner": str(foreign.runner),
        "ssh_user": login_name(),
        "wait_s": LONG_S,
    }
    added = await kept.ask("image_add", **asked, **more)
    assert added["state"] == "succeeded", added
    image: dict[str, Any] = added["result"]
    foreign.authorize(image["ssh_authorized_key"])
    return image


async def start(kept: House) -> dict[str, Any]:
    return await kept.ask("machine_start", machine="box", wait_s=LONG_S)


async def run(kept: House, script: str, **more: Any) -> dict[str, Any]:
    return await kept.ask("machine_exec", machine="box", script=script, wait_s=LONG_S, **more)


@asynccontextmanager
async def box(tmp_path: Path, foreign: Foreign, **more: Any) -> AsyncGenerator[House]:
    """Keep a service with a machine `box` of a foreign image."""
    async with house(tmp_path) as kept:
        await add(kept, foreign, **more)
        await kept.ask("machine_define", name="box", image="foreign")
        started = await start(kept)
        assert started["state"] == "succeeded", started
        yield kept


async def not_there(kept: House) -> str:
    """Run commands until the guest is not reached, and tell why."""
    while True:
        try:
            await run(kept, "true")
        except errors.UnknownOutcome:
            continue  # it was running when the connection broke
        except errors.MachineUnreachable as error:
            if "is not there" in error.message:
                return error.message


async def reached_again(kept: House) -> dict[str, Any]:
    """Run a command until it reaches the guest, which is tried more and more seldom."""
    while True:
        try:
            return await run(kept, "echo back")
        except errors.MachineUnreachable:
            await anyio.sleep(0.1)


@pytest.fixture
async def foreign(tmp_path: Path) -> AsyncGenerator[Foreign]:
    """A guest, of which no machine runs when the test is over."""
    yield make_foreign(tmp_path / "foreign")
    async with house(tmp_path) as kept:
        for machine in (await kept.ask("machine_list"))["items"]:
            if machine["state"] == "running":
                await kept.ask("machine_kill", machine=machine["machine_id"])


async def test_who_adds_a_foreign_image_is_told_the_key_to_let_in_and_nothing_private(
    tmp_path: Path, foreign: Foreign
) -> None:
    async with house(tmp_path) as kept:
        image = await add(kept, foreign)
        assert (image["ssh_user"], image["ssh_host_key"]) == (login_name(), None)
        assert await kept.ask("image_get", image="foreign") == image
        assert (await kept.ask("image_list"))["items"] == [image]
        again = await add(kept, foreign, ssh_host_key=make_key("x").public)
        assert again["digest"] != image["digest"]
        assert again["ssh_authorized_key"] == image["ssh_authorized_key"]
        assert "PRIVATE" not in json.dumps([image, again])
    path = tmp_path / places.SSH / "client"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert image["ssh_authorized_key"].startswith("ssh-ed25519 ")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"ssh_host_key": "ssh-ed25519 AAAA"}, "no public key"),
        ({"ssh_host_key": "ssh-dss AAAA"}, "no public host key"),
        ({"ssh_host_key": "-----BEGIN OPENSSH PRIVATE KEY-----"}, "no public host key"),
        ({"ssh_user": None, "ssh_host_key": make_key("x").public}, "without a user"),
        ({"ssh_user": "-oProxyCommand=id"}, "ssh_user"),
    ],
)
async def test_a_login_that_is_none_is_refused(
    tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    asked = {"name": "x", "runner": "/nothing", "ssh_user": "root", **more}
    async with house(tmp_path) as kept:
        with pytest.raises(errors.InvalidInput, match=says):
            await kept.ask("image_add", **asked)


async def test_an_image_of_before_has_the_digest_it_had() -> None:
    old = RunnerManifest(
        architecture="x86_64",
        hypervisor="qemu",
        path="/srv/runner",
        runner="0" * 64,
        memory_mib=None,
        vcpus=None,
    )
    assert b"ssh" not in old.written()
    assert read_manifest(old.written()) == old
    ours = old.model_copy(update={"ssh": SshLogin(user="root", host_key=None)})
    assert read_manifest(ours.written()) == ours
    assert digest_of(ours.written()) != digest_of(old.written())


async def test_a_foreign_guest_runs_commands_and_is_found_again_by_a_new_daemon(
    tmp_path: Path, foreign: Foreign
) -> None:
    async with box(tmp_path, foreign) as kept:
        script = 'cat; echo "$X $PWD"; echo err >&2; exit 3'
        told = await run(kept, script, stdin="in ", env={"X": "é"}, cwd="/usr")
        assert (told["stdout"], told["stderr"]) == ("in é /usr\n", "err\n")
        assert told["exit_code"] == 3
        slow = await run(kept, "echo begun; sleep 1000", timeout_s=0.5)
        assert (slow["stdout"], slow["timed_out"]) == ("begun\n", True)
        await kept.ask("file_put", machine="box", path=f"{tmp_path}/file", content="é")
        left = await kept.ask(
            "machine_exec", machine="box", script="echo left; sleep 1000", exec_id="left", wait_s=0
        )
        assert left["state"] == "running"
    async with house(tmp_path) as kept:
        assert (await kept.ask("machine_get", machine="box"))["state"] == "running"
        got = await kept.ask("file_get", machine="box", path=f"{tmp_path}/file")
        assert got["content"] == "é"
        # What ran over the connection of before is not run again, and nobody knows its end.
        with pytest.raises(errors.UnknownOutcome, match="once its connection has ended"):
            await kept.ask("exec_wait", exec_id="left", timeout_s=LONG_S)
        [lost] = (await kept.ask("exec_list", state="lost"))["items"]
        assert "once its connection has ended" in lost["reason"]
        await kept.ask("machine_stop", machine="box", wait_s=LONG_S)
        stopped = await kept.ask("machine_get", machine="box")
        assert (stopped["state"], stopped["reason"]) == ("stopped", "it was stopped, as asked")


async def test_the_host_key_of_an_image_is_the_only_one_believed(
    tmp_path: Path, foreign: Foreign
) -> None:
    pinned = make_key("pinned").public
    async with house(tmp_path) as kept:
        await add(kept, foreign, ssh_host_key=pinned)
        await kept.ask("machine_define", name="box", image="foreign")
        started = await start(kept)
        assert started["state"] == "failed"
        said = started["error"]["message"]
        assert fingerprint(pinned) in said
        assert fingerprint(foreign.server.keys.host.public) in said
        assert (await kept.ask("machine_get", machine="box"))["state"] == "crashed"
        await add(kept, foreign, ssh_host_key=foreign.server.keys.host.public)
        await kept.ask("machine_define", name="other", image="foreign")
        started = await kept.ask("machine_start", machine="other", wait_s=LONG_S)
        assert started["state"] == "succeeded", started


async def test_the_first_host_key_that_a_machine_shows_is_its_own_until_it_is_deleted(
    tmp_path: Path, foreign: Foreign
) -> None:
    async with box(tmp_path, foreign) as kept:
        await kept.ask("machine_kill", machine="box")
        again = await start(kept)
        assert again["state"] == "succeeded", again
        await kept.ask("machine_kill", machine="box")
        foreign.change_host_key(make_key("another").private)
        other = await start(kept)
        assert other["state"] == "failed"
        assert fingerprint(foreign.server.keys.host.public) in other["error"]["message"]
        await kept.ask("machine_delete", machine="box")
        await kept.ask("machine_define", name="box", image="foreign")
        anew = await start(kept)
        assert anew["state"] == "succeeded", anew


async def test_a_server_with_another_key_is_told_nothing_and_callers_are_told_why(
    tmp_path: Path, foreign: Foreign
) -> None:
    async with box(tmp_path, foreign) as kept:
        own = (foreign.folder / "keys" / "host").read_bytes()
        foreign.change_host_key(make_key("another").private)
        foreign.kill_server()
        with anyio.fail_after(LONG_S):
            assert "has shown the host key" in await not_there(kept)
        assert (await kept.ask("machine_get", machine="box"))["state"] == "running"
        foreign.change_host_key(own)
        with anyio.fail_after(LONG_S):
            assert (await reached_again(kept))["stdout"] == "back\n"
