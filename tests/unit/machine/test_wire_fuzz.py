"""Both ends of the channel against noise: neither falls, hangs, grows or acts on what is broken."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guests import agent_words, listening
from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel import open_shell
from microvm_orchestrator.machine.shell import Command, Tcp, TreeLimits
from scripted_guest import HELLO, scripted

# They only decide how long a broken test takes to say so.
SOON_S = 20.0
GROWTH_KIB = 20_000


class NoisyHost:
    """A host without manners, and one with them to see whether the agent still answers."""

    def __init__(self, path: Path, pid: int) -> None:
        self.path = path
        self.pid = pid

    def make_noise(self, noise: bytes) -> None:
        """Say it all, and wait until the agent has taken it all in."""
        with self.connected() as connection:
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass

    def hello(self) -> wire.Fields:
        """Begin a connection as a host does, and return what the agent says of itself."""
        with self.connected() as connection:
            nonce = os.urandom(wire.NONCE_BYTES)
            connection.sendall(wire.preamble(nonce, 1, 1))
            reader = wire.FrameReader()
            while True:
                reader.buffer += connection.recv(1 << 16)
                at = reader.buffer.find(wire.MARKER + nonce)
                if at >= 0 and len(reader.buffer) - at > wire.PREAMBLE_BYTES:
                    del reader.buffer[: at + wire.PREAMBLE_BYTES]
                    for kind, _, _, payload in reader.frames():
                        assert kind == wire.HELLO
                        return wire.decode(payload)

    def resident_kib(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    @contextmanager
    def connected(self) -> Generator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SOON_S)
            connection.connect(os.fspath(self.path))
            yield connection


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoisyHost]:
    """An agent; none of the words that are garbled is one that changes its guest."""
    path = tmp_path_factory.mktemp("agent") / "socket"
    with listening(path) as fd:
        process = subprocess.Popen(
            agent_words(f"listener:{fd}"),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(fd,),
        )
    assert process.stderr
    with process, process.stderr:
        try:
            yield NoisyHost(path, process.pid)
            assert process.poll() is None
        finally:
            process.terminate()
        # Not a word about an error that it had not foreseen.
        assert process.stderr.read() == b""


def opening(number: int, **fields: int | bytes | list[bytes]) -> bytes:
    return wire.frame(wire.OPEN, number, wire.encode(fields))


# What a host says in earnest, harmless when it is garbled. No verb that changes the guest.
TALK = [
    opening(1, verb=b"exec", id=b"a", argv=[b"/bin/cat"], timeout_ms=1000),
    wire.frame(wire.DATA, 1, b"some input"),
    wire.frame(wire.NOTE, 1, wire.encode({"rows": 24, "columns": 80})),
    wire.frame(wire.CREDIT, 1, wire.credit(1000)),
    wire.frame(wire.END, 1),
    wire.frame(wire.CANCEL, 1),
    opening(3, verb=b"ping"),
    opening(5, verb=b"usage"),
    opening(7, verb=b"get", path=b"/etc/hostname", max_size=1000),
    opening(9, verb=b"get_tree", path=b"/etc/ssl", max_size=100, max_entries=10),
    opening(11, verb=b"attach", id=b"a", offset=0),
    opening(13, verb=b"jobs"),
    opening(15, verb=b"connect", host=b"127.0.0.1", port=1),
    opening(17, verb=b"listen", port=0),
    opening(19, verb=b"exec", id=b"b", argv=[b"/bin/true"], tty=1, rows=1, columns=1),
    wire.frame(wire.FORGET, 0, b"a"),
    wire.frame(wire.FORGET, 0, b"b"),
]
PREAMBLE = wire.preamble(b"n" * 16, 1, 1)


def garbled(talk: bytes, seed: int) -> bytes:
    """Change, drop and repeat a few bytes."""
    chance = random.Random(seed)
    data = bytearray(talk)
    for _ in range(chance.randint(0, 4)):
        at = chance.randrange(len(data))
        act = chance.randrange(4)
        if act == 0:
            data[at] = chance.randrange(256)
        elif act == 1:
            del data[at : at + chance.randrange(30)]
        elif act == 2:
            data[at:at] = data[at : at + chance.randrange(30)]
        else:
            data[at:at] = chance.randbytes(chance.randrange(30))
        if not data:
            break
    return bytes(data)


@pytest.fixture(scope="module")
def calm(host: NoisyHost) -> int:
    """How large the agent is when it has seen a bit of everything."""
    for seed in range(30):
        host.make_noise(PREAMBLE + garbled(b"".join(TALK), seed))
    host.hello()
    return host.resident_kib()


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(talk=st.lists(st.sampled_from(TALK), min_size=1, max_size=12), seed=st.integers(0, 2**32))
def test_an_agent_answers_the_next_host_whatever_the_last_one_said(
    host: NoisyHost, calm: int, talk: list[bytes], seed: int
) -> None:
    noise = garbled(b"".join(talk), seed)
    host.make_noise(PREAMBLE + noise)
    host.make_noise(PREAMBLE + noise[: len(noise) // 2] + PREAMBLE + noise)
    assert host.hello()["agent"]
    assert host.resident_kib() < calm + GROWTH_KIB


@settings(max_examples=60)
@given(noise=st.binary(max_size=2000), greeted=st.booleans())
def test_an_agent_answers_the_next_host_after_any_bytes(
    host: NoisyHost, calm: int, noise: bytes, *, greeted: bool
) -> None:
    host.make_noise((PREAMBLE if greeted else b"") + noise)
    assert host.hello()["agent"]
    assert host.resident_kib() < calm + GROWTH_KIB


WORDS = st.sampled_from([b"a", b"/bin/true", b"/etc/hostname", b"/", b"127.0.0.1"]) | st.binary(
    max_size=9
)
VALUES = st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 3) | WORDS | st.lists(WORDS, max_size=3)
NAMES = [
    *("id", "argv", "env", "cwd", "user", "tty", "rows", "columns", "timeout_ms", "stdin", "keep"),
    *("offset", "signal", "path", "max_size", "max_entries", "host", "port", "listener", "pid"),
    *("size", "mode", "type", "code", "why", "skipped", "skips", "jobs", "event", "text"),
]
RECORDS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8)
VERBS = st.sampled_from([b"exec", b"attach", b"get", b"get_tree", b"connect", b"jobs", b"no such"])


@st.composite
def frames(draw: st.DrawFn, kinds: list[int], number: int) -> bytes:
    """Frames that are whole, and records that are records, but of anything."""
    kind = draw(st.sampled_from(kinds))
    if kind in (wire.DATA, wire.CREDIT):
        payload = draw(st.binary(min_size=4, max_size=4))
    elif kind in (wire.END, wire.CANCEL):
        payload = b""
    else:
        payload = wire.encode(draw(RECORDS))
    if kind == wire.OPEN and number % 2:
        payload = wire.encode({**draw(RECORDS), "verb": draw(VERBS)})
    channel = draw(st.integers(0, 2)) if kind == wire.DATA else 0
    return wire.frame(kind, 0 if kind == wire.EVENT else number, payload, channel)


@settings(max_examples=200)
@given(data=st.data())
def test_an_agent_answers_the_next_host_whatever_a_request_asks_for(
    host: NoisyHost, calm: int, data: st.DataObject
) -> None:
    noise = PREAMBLE
    for number in range(1, 20, 2):
        noise += data.draw(frames([wire.OPEN], number))
        kinds = [wire.DATA, wire.NOTE, wire.CREDIT, wire.END, wire.CANCEL]
        noise += b"".join(data.draw(st.lists(frames(kinds, number), max_size=3)))
    host.make_noise(noise)
    assert host.hello()["agent"]
    assert host.resident_kib() < calm + GROWTH_KIB


def test_an_agent_hears_no_more_from_a_host_that_does_not_listen(
    host: NoisyHost, calm: int
) -> None:
    pings = b"".join(opening(number, verb=b"ping") for number in range(1, 1_000_000, 2))
    with host.connected() as connection:
        connection.sendall(PREAMBLE)
        connection.settimeout(1.0)
        with pytest.raises(TimeoutError):
            connection.sendall(pings)
        assert host.resident_kib() < calm + GROWTH_KIB
    assert host.hello()["agent"]


# What a guest answers in earnest, to a host that asks for a bit of everything.
ANSWERS = [
    wire.frame(wire.NOTE, 1, wire.encode({"pid": 1, "offset": 0})),
    wire.frame(wire.DATA, 1, b"output", 1),
    wire.frame(wire.RESULT, 1, wire.encode({"code": 0, "signal": 0, "why": b"", "offset": 6})),
    wire.frame(wire.NOTE, 3, wire.encode({"size": 5, "mode": 0o644})),
    wire.frame(wire.DATA, 3, b"bytes"),
    wire.frame(wire.RESULT, 3, wire.encode({})),
    wire.frame(
        wire.NOTE, 5, wire.encode({"type": b"file", "path": b"a", "mode": 0o644, "size": 2})
    ),
    wire.frame(wire.DATA, 5, b"ab"),
    wire.frame(wire.NOTE, 5, wire.encode({"type": b"folder", "path": b"d", "mode": 0o755})),
    wire.frame(wire.RESULT, 5, wire.encode({"skipped": 0, "skips": []})),
    wire.frame(wire.NOTE, 7, wire.encode({"port": 7})),
    wire.frame(wire.OPEN, 2, wire.encode({"listener": 7})),
    wire.frame(wire.DATA, 2, b"from a program"),
    wire.frame(wire.END, 2),
    wire.frame(wire.CREDIT, 1, wire.credit(10)),
    wire.frame(wire.EVENT, 0, wire.encode({"event": b"oom", "kills": 1})),
    wire.frame(wire.ERROR, 9, wire.encode({"code": b"failed", "text": b"no"})),
]


async def _ask_for_everything(said: bytes, folder: Path) -> None:
    async with scripted() as (guest, transport), anyio.create_task_group() as group:

        async def answer() -> None:
            await guest.stream.send(await guest.answer())
            await guest.say(wire.HELLO, 0, HELLO)
            for _ in range(3):
                await guest.hear(wire.OPEN)
            await guest.stream.send(said)
            await guest.stream.aclose()

        group.start_soon(answer)
        async with open_shell(transport) as shell:

            async def read_file() -> None:
                async with shell.get("/f", max_size=100) as file:
                    async for _ in file:
                        pass

            async def listen() -> None:
                async with shell.reverse(Tcp(0), lambda stream: stream.aclose()):
                    await shell.ping()

            async def attempt(number: int) -> None:
                try:
                    if number == 0:
                        await shell.exec(Command(["x"]))
                    elif number == 1:
                        await read_file()
                    elif number == 2:
                        await shell.get_tree("/t", folder, TreeLimits(size=1000, entries=5))
                    else:
                        await listen()
                except errors.OrchestratorError:
                    pass

            async with anyio.create_task_group() as asking:
                for number in range(4):
                    asking.start_soon(attempt, number)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(answers=st.permutations(ANSWERS), seed=st.integers(0, 2**32))
def test_a_host_ends_every_request_with_an_error_it_knows_whatever_a_guest_says(
    tmp_path_factory: pytest.TempPathFactory, answers: list[bytes], seed: int
) -> None:
    _answer_everything(garbled(b"".join(answers), seed), tmp_path_factory.mktemp("into"))


@settings(max_examples=200)
@given(data=st.data())
def test_a_host_ends_every_request_with_an_error_it_knows_whatever_an_answer_holds(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    answers = ANSWERS[0] + ANSWERS[3] + ANSWERS[10] + ANSWERS[11]
    kinds = [wire.DATA, wire.NOTE, wire.CREDIT, wire.END, wire.RESULT, wire.ERROR, wire.EVENT]
    for number in data.draw(st.lists(st.sampled_from([1, 2, 3, 5, 7, 9]), max_size=10)):
        answers += data.draw(frames(kinds, number))
    _answer_everything(answers, tmp_path_factory.mktemp("into"))


def _answer_everything(said: bytes, folder: Path) -> None:
    (folder / "tree").mkdir()

    async def bounded() -> None:
        with anyio.fail_after(SOON_S):
            await _ask_for_everything(said, folder / "tree")

    anyio.run(bounded)
    assert [path.name for path in folder.iterdir()] == ["tree"]
