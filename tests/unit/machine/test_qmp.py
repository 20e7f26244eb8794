"""The monitor's client against a peer that says what it is told to say."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from microvm_orchestrator import errors
from microvm_orchestrator.machine import sockets
from microvm_orchestrator.machine.qemu.qmp import Qmp, Refused, open_qmp, read_reply
from microvm_orchestrator.together import beside

SOON_S = 10.0
GREETING: dict[str, Any] = {"QMP": {"version": {}, "capabilities": []}}
AT = {"seconds": 5, "microseconds": 250_000}


class Peer:
    """The other end, by hand."""

    def __init__(self, stream: UNIXSocketStream) -> None:
        self.stream = stream
        self.heard = BufferedByteReceiveStream(stream)

    async def say(self, *messages: dict[str, Any]) -> None:
        await self.stream.send(b"".join(json.dumps(m).encode() + b"\r\n" for m in messages))

    async def hear(self) -> dict[str, Any]:
        return json.loads(await self.heard.receive_until(b"\n", 1 << 20))

    async def answer(self, result: object) -> dict[str, Any]:
        asked = await self.hear()
        await self.say({"return": result, "id": asked["id"]})
        return asked


@asynccontextmanager
async def connected(folder: Path) -> AsyncGenerator[tuple[Qmp, Peer]]:
    """A monitor that has greeted."""
    with sockets.listen(folder / "qmp") as listener, anyio.fail_after(SOON_S):
        peers: list[Peer] = []

        async def greet() -> None:
            peer = await accepted(listener)
            peers.append(peer)
            await peer.say(GREETING)
            assert (await peer.hear())["execute"] == "qmp_capabilities"
            await peer.say({"return": {}})

        async with (
            beside(greet),
            open_qmp("machine m", folder / "qmp") as qmp,
            peers[0].stream,
        ):
            yield qmp, peers[0]


async def accepted(listener: socket.socket) -> Peer:
    listener.setblocking(False)
    await anyio.wait_readable(listener)
    return Peer(await UNIXSocketStream.from_socket(listener.accept()[0]))


async def test_a_command_is_answered_by_its_id_whatever_comes_between(tmp_path: Path) -> None:
    answers: dict[str, object] = {}
    async with connected(tmp_path) as (qmp, peer), anyio.create_task_group() as group:

        async def ask(command: str) -> None:
            answers[command] = await qmp.execute(command, {"a": 1})

        group.start_soon(ask, "one")
        first = await peer.hear()
        group.start_soon(ask, "two")
        second = await peer.hear()
        assert (first["execute"], first["arguments"]) == ("one", {"a": 1})
        await peer.say(
            {"return": {"of": "two"}, "id": second["id"]},
            {"event": "STOP", "timestamp": AT},
            {"return": {"of": "nobody"}, "id": 999},
            {"return": {"of": "one"}, "id": first["id"]},
        )
    assert answers == {"one": {"of": "one"}, "two": {"of": "two"}}


async def test_a_refusal_says_who_refused_what_and_why(tmp_path: Path) -> None:
    async with connected(tmp_path) as (qmp, peer), anyio.create_task_group() as group:

        async def refuse() -> None:
            asked = await peer.hear()
            await peer.say(
                {"error": {"class": "GenericError", "desc": "not now"}, "id": asked["id"]}
            )

        group.start_soon(refuse)
        with pytest.raises(Refused, match="machine m refused cont: not now"):
            await qmp.execute("cont")


async def test_events_come_to_who_listens_in_their_order_with_their_time(tmp_path: Path) -> None:
    async with connected(tmp_path) as (qmp, peer):
        with qmp.listen() as one, qmp.listen() as other:
            await peer.say(
                {"event": "STOP", "timestamp": AT},
                {"event": "SHUTDOWN", "data": {"reason": "guest-reset"}, "timestamp": AT},
            )
            for listener in (one, other):
                assert (await listener.receive()).name == "STOP"
                event = await listener.receive()
                assert (event.data["reason"], event.at) == ("guest-reset", 5.25)


async def test_an_open_file_goes_along_with_the_command_that_names_it(tmp_path: Path) -> None:
    async with connected(tmp_path) as (qmp, peer), anyio.create_task_group() as group:
        reading, writing = os.pipe()
        group.start_soon(lambda: qmp.execute("getfd", {"fdname": "x"}, fds=[writing]))
        data, handed = await peer.stream.receive_fds(65536, 2)
        asked = json.loads(data)
        assert asked["execute"] == "getfd"
        os.write(handed[0], b"through")
        assert os.read(reading, 100) == b"through"
        for fd in (reading, writing, *handed):
            os.close(fd)
        await peer.say({"return": {}, "id": asked["id"]})


async def test_a_command_that_is_not_answered_in_time_is_told_of(tmp_path: Path) -> None:
    async with connected(tmp_path) as (qmp, peer):
        with pytest.raises(errors.MachineUnreachable, match=r"did not answer stop: .* 0\.05 s"):
            await qmp.execute("stop", within_s=0.05)
        asked = await peer.hear()
        # The answer that comes too late is for nobody.
        await peer.say({"return": {"late": True}, "id": asked["id"]})
        async with anyio.create_task_group() as group:
            group.start_soon(peer.answer, {"fine": True})
            assert await qmp.execute("query-status") == {"fine": True}


async def test_everybody_who_waits_is_told_when_the_other_side_is_gone(tmp_path: Path) -> None:
    async with connected(tmp_path) as (qmp, peer), anyio.create_task_group() as group:

        async def leave() -> None:
            await peer.hear()
            await peer.stream.aclose()

        group.start_soon(leave)
        with qmp.listen() as events:
            with pytest.raises(errors.MachineUnreachable, match="its monitor is closed"):
                await qmp.execute("cont")
            with pytest.raises(anyio.EndOfStream):
                await events.receive()
        with pytest.raises(errors.MachineUnreachable, match="its monitor is closed"):
            await qmp.execute("cont")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"this is no JSON\n",
        b"[1, 2]\n",
        b'{"event": 5}\n',
        b'{"event": "STOP", "timestamp": {"seconds": "x"}}\n',
        b'{"return": {}, "id": "one"}\n',
        b"x" * (2 << 20),
        b'{"event": "STOP", "timestamp": {}}\n' * 5000,
    ],
    ids=["text", "list", "number", "time", "id", "endless", "flood"],
)
async def test_a_monitor_that_talks_nonsense_is_let_go_of(tmp_path: Path, nonsense: bytes) -> None:
    async with connected(tmp_path) as (qmp, peer), anyio.create_task_group() as group:

        async def babble() -> None:
            await peer.hear()
            with suppress(anyio.BrokenResourceError):
                await peer.stream.send(nonsense)

        group.start_soon(babble)
        nonsense_told = pytest.raises(errors.MachineUnreachable, match="its monitor talks nonsense")
        with qmp.listen(), nonsense_told:
            await qmp.execute("cont")


async def test_a_socket_that_nobody_listens_on_is_no_monitor(tmp_path: Path) -> None:
    with pytest.raises(errors.MachineUnreachable, match="machine m has no monitor"):
        async with open_qmp("machine m", tmp_path / "qmp"):
            pass


async def test_who_does_not_greet_is_no_monitor(tmp_path: Path) -> None:
    with sockets.listen(tmp_path / "qmp") as listener, anyio.fail_after(SOON_S):
        async with anyio.create_task_group() as group:

            async def hang_up() -> None:
                peer = await accepted(listener)
                await peer.stream.aclose()

            group.start_soon(hang_up)
            with pytest.raises(errors.MachineUnreachable, match="did not greet"):
                async with open_qmp("machine m", tmp_path / "qmp"):
                    pass


def test_what_somebody_else_was_answered_is_read_as_strictly() -> None:
    assert (
        read_reply("machine m", "qom-get", '{"return": "disk0-1", "id": "libvirt-7"}') == "disk0-1"
    )
    with pytest.raises(Refused, match=r"machine m refused qom-set: no such node$"):
        read_reply(
            "machine m", "qom-set", '{"error": {"class": "x", "desc": "no such \\u001bnode"}}'
        )
    for nonsense in ("", "[]", "nonsense", '{"error": 1}', '{"return": "' + "x" * (1 << 20) + '"}'):
        with pytest.raises(errors.ProtocolBroken, match="answers nonsense to query-block"):
            read_reply("machine m", "query-block", nonsense)


async def test_a_socket_may_lie_deeper_than_its_address_has_room(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with sockets.listen(deep / "s") as listener:
        async with await sockets.connect(deep / "s") as stream:
            await stream.send(b"hello")
            with listener.accept()[0] as other:
                assert other.recv(10) == b"hello"
    assert (deep / "s").stat().st_mode & 0o777 == 0o600
