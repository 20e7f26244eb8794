"""Each rule of `guest/protocol.md` that a guest may break, and what the host makes of it.

The connection is failed with a reason, what may have started is an unknown outcome, nothing grows,
and no file of the host outside the folder asked for is touched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel import open_shell
from microvm_orchestrator.machine.shell import Command, Identity, Shell, Tcp, TreeLimits
from scripted_guest import HELLO, greeted, scripted

if TYPE_CHECKING:
    # kind, stream, record or bytes, channel
    Said = list[tuple[int, int, wire.Fields | bytes, int]]

TRUE = Command(["true"])
STARTED: wire.Fields = {"pid": 1, "offset": 0}
ENDED: wire.Fields = {"code": 0, "signal": 0, "why": b"", "offset": 0}


def frames(number: int, said: Said) -> bytes:
    """Write frames; a stream of 0 stands for the one that the host has opened."""
    return b"".join(
        wire.frame(
            kind,
            stream or (0 if kind in (wire.HELLO, wire.EVENT, wire.FORGET) else number),
            what if isinstance(what, bytes) else wire.encode(what),
            channel,
        )
        for kind, stream, what, channel in said
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def provoke(
    act: Callable[[Shell], Awaitable[object]], said: bytes | Said, error: type[Exception]
) -> str:
    """Let the host ask for something, answer it so, and return why it failed."""
    why = ""
    async with greeted() as (guest, shell), anyio.create_task_group() as group:

        async def answer() -> None:
            number, _ = await guest.hear(wire.OPEN)
            await guest.stream.send(said if isinstance(said, bytes) else frames(number, said))
            await guest.ignore_the_rest()

        group.start_soon(answer)
        with pytest.raises(error) as raised:
            await act(shell)
        why = str(raised.value)
        group.cancel_scope.cancel()
    return why


async def run(shell: Shell) -> object:
    return await shell.exec(TRUE)


NOTE, DATA, RESULT, END, CREDIT = wire.NOTE, wire.DATA, wire.RESULT, wire.END, wire.CREDIT
BAD_EXEC: dict[str, tuple[bytes | Said, str]] = {
    "garbage": (b"\0" * 200, "no kind 0"),
    "a length beyond the limit": (b"\0\0\0\1\xff\xff\xff\xff\0\3x", "4294967295 bytes"),
    "a length that is wrong": (wire.frame(DATA, 1, b"abc", 1)[:-1] + b"x", "does not end"),
    "an answer before the start": ([(RESULT, 0, ENDED, 0)], "before the record"),
    "output before the start": ([(DATA, 0, b"x", 1)], "before the record"),
    "a start that is none": ([(NOTE, 0, {"offset": b""}, 0)], "offset"),
    "input without an end": ([(NOTE, 0, {**STARTED, "input": 5}, 0)], "input_over"),
    "less than no input": ([(NOTE, 0, {**STARTED, "input": -1, "input_over": 0}, 0)], "input"),
    "a start behind the start": ([(NOTE, 0, STARTED, 0), (NOTE, 0, STARTED, 0)], "between"),
    "output on the input": ([(NOTE, 0, STARTED, 0), (DATA, 0, b"x", 0)], "channel 0"),
    "an unknown stream": ([(DATA, 77, b"x", 1)], "not open"),
    "a stream of its own that it never opened": ([(DATA, 2, b"x", 0)], "not open"),
    "a stream of its own with our parity": ([(wire.OPEN, 3, {"listener": 1}, 0)], "not the next"),
    "an answer twice": ([(NOTE, 0, STARTED, 0), (RESULT, 0, ENDED, 0), (RESULT, 1, ENDED, 0)], ""),
    "an end twice": ([(NOTE, 0, STARTED, 0), (END, 0, b"", 0), (END, 0, b"", 0)], "no place"),
    "output behind the end": ([(END, 0, b"", 0), (DATA, 0, b"x", 1)], "behind its END"),
    "a grant of nothing": ([(CREDIT, 0, wire.credit(0), 0)], "grant"),
    "a grant beyond the window": ([(CREDIT, 0, wire.credit(1), 0)], "grant"),
    "a grant of everything": ([(CREDIT, 0, b"\xff" * 4, 0)], "grant"),
    "a cancel of our stream": ([(wire.CANCEL, 0, b"", 0)], "no place"),
    "a host's frame": ([(wire.FORGET, 0, b"id", 0)], "not open"),
    "another HELLO": ([(wire.HELLO, 0, HELLO, 0)], "not open"),
    "a code that cannot be": (
        [(NOTE, 0, STARTED, 0), (RESULT, 0, {**ENDED, "code": 256}, 0)],
        "code",
    ),
    "an end without a code": ([(NOTE, 0, STARTED, 0), (RESULT, 0, {}, 0)], "code"),
    "an end elsewhere": ([(NOTE, 0, STARTED, 0), (RESULT, 0, {**ENDED, "offset": 5}, 0)], "offset"),
    "an error that says nothing": ([(wire.ERROR, 0, {}, 0)], "code"),
    "a record that is none": ([(NOTE, 0, b"\x05garbage", 0)], "record"),
    "a complaint": ([(wire.EVENT, 0, {"event": b"broken", "text": b"you"}, 0)], "we broke"),
    "another agent": (wire.preamble(bytes(16), 0, 1), "another agent"),
}


@pytest.mark.parametrize("case", BAD_EXEC)
async def test_an_exec_that_is_answered_against_the_rules_is_an_unknown_outcome(case: str) -> None:
    said, why = BAD_EXEC[case]
    if case == "an answer twice":  # the first was right, so the machine is failed behind it
        async with greeted() as (guest, shell), anyio.create_task_group() as group:
            group.start_soon(shell.exec, TRUE)
            number, _ = await guest.hear(wire.OPEN)
            assert isinstance(said, list)
            await guest.stream.send(frames(number, said))
            await guest.ignore_the_rest()
        with pytest.raises(errors.ProtocolBroken, match="not open"):
            await shell.ping()
        return
    assert why in await provoke(run, said, errors.UnknownOutcome)


async def signal_and_read_nothing(shell: Shell) -> None:
    async with shell.stream(TRUE) as process:
        while True:
            await process.signal(0)


async def read_two_pieces(shell: Shell) -> None:
    async with shell.stream(TRUE) as process:
        output = await anext(aiter(process))
        assert output.data == b"last words"
        await anext(aiter(process))


@pytest.mark.parametrize("flood", [[bytes(65536)] * 4, [b"x"] * 2100], ids=["bytes", "frames"])
async def test_a_guest_that_sends_more_than_was_read_breaks_the_connection(
    flood: list[bytes],
) -> None:
    async with greeted() as (guest, shell), anyio.create_task_group() as group:

        async def answer() -> None:
            number, _ = await guest.hear(wire.OPEN)
            said: Said = [(NOTE, 0, STARTED, 0), *[(DATA, 0, piece, 1) for piece in flood]]
            await guest.stream.send(frames(number, said))
            await guest.ignore_the_rest()

        group.start_soon(answer)
        with pytest.raises(errors.UnknownOutcome, match="than it was granted"):
            await signal_and_read_nothing(shell)
        group.cancel_scope.cancel()


async def test_a_broken_connection_stays_broken_and_says_why_to_everybody() -> None:
    async with greeted() as (guest, shell):
        await guest.stream.send(b"\xff" * 100)
        await guest.ignore_the_rest()
        for ask in (shell.ping, shell.usage, shell.jobs, lambda: shell.exec(TRUE)):
            with pytest.raises(errors.ProtocolBroken, match="no kind 255"):
                await ask()
        assert [event async for event in shell.events()] == []


async def test_what_arrived_before_the_break_is_delivered_before_it() -> None:
    async with greeted() as (guest, shell), anyio.create_task_group() as group:

        async def answer() -> None:
            number, _ = await guest.hear(wire.OPEN)
            said: Said = [(NOTE, 0, STARTED, 0), (DATA, 0, b"last words", 1)]
            await guest.stream.send(frames(number, said))
            await guest.stream.aclose()

        group.start_soon(answer)
        with pytest.raises(errors.UnknownOutcome):
            await read_two_pieces(shell)


SIZED: wire.Fields = {"size": 3, "mode": 0o644}
BAD_FILES: dict[str, tuple[Said, str]] = {
    "a size beyond the limit": ([(NOTE, 0, {"size": 1 << 40, "mode": 0}, 0)], "size"),
    "a negative size": ([(NOTE, 0, {"size": -1, "mode": 0}, 0)], "size"),
    "a mode that is none": ([(NOTE, 0, {"size": 1, "mode": 1 << 20}, 0)], "mode"),
    "more than announced": ([(NOTE, 0, SIZED, 0), (DATA, 0, b"abcd", 0)], "more of a file"),
    "less than announced": ([(NOTE, 0, SIZED, 0), (DATA, 0, b"ab", 0), (RESULT, 0, {}, 0)], "less"),
    "a record in between": ([(NOTE, 0, SIZED, 0), (NOTE, 0, SIZED, 0)], "more of a file"),
    "stderr": ([(NOTE, 0, SIZED, 0), (DATA, 0, b"abc", 2)], "channel 2"),
}


@pytest.mark.parametrize("case", BAD_FILES)
async def test_a_file_that_is_not_what_it_announced_breaks_the_connection(case: str) -> None:
    async def fetch(shell: Shell) -> None:
        async with shell.get("/file", max_size=1000) as file:
            async for _ in file:
                pass

    said, why = BAD_FILES[case]
    assert why in await provoke(fetch, said, errors.ProtocolBroken)


def entry(path: bytes, kind: bytes = b"file", size: int = 0) -> tuple[int, int, wire.Fields, int]:
    return NOTE, 0, {"type": kind, "path": path, "mode": 0o6777, "size": size}, 0


FOLDER = entry(b"d", b"folder")
BAD_TREES: dict[str, tuple[Said, str]] = {
    "a way up": ([entry(b"../evil")], "elsewhere"),
    "a way up inside": ([FOLDER, entry(b"d/../../evil")], "elsewhere"),
    "an absolute path": ([entry(b"/tmp/evil")], "elsewhere"),
    "no path": ([entry(b"")], "elsewhere"),
    "the folder itself": ([entry(b".")], "elsewhere"),
    "a NUL": ([entry(b"a\0b")], "elsewhere"),
    "a long name": ([entry(b"x" * 256)], "too long"),
    "a deep name": ([entry(b"/".join([b"d"] * 100))], "too deep"),
    "a very long path": ([entry(b"x" * 5000)], "4096"),
    "a link": ([entry(b"l", b"symlink")], "type"),
    "a device": ([entry(b"l", b"device")], "type"),
    "a fifo": ([entry(b"l", b"fifo")], "type"),
    "a file twice": ([entry(b"f"), entry(b"f")], "File exists"),
    "a folder twice": ([FOLDER, FOLDER], "File exists"),
    "a file below a file": ([entry(b"f"), entry(b"f/g")], "Not a directory"),
    "a file below nothing": ([entry(b"no/such")], "No such file"),
    "a file through a link": ([entry(b"link/evil")], "Not a directory"),
    "a file over a link": ([entry(b"link")], "File exists"),
    "a sparse file of 4 GB": ([entry(b"f", size=1 << 32)], "size"),
    "many files, too large together": (
        [entry(b"f", size=900), (DATA, 0, bytes(900), 0), entry(b"g", size=200)],
        "size",
    ),
    "a negative size": ([entry(b"f", size=-1)], "size"),
    "more files than allowed": ([entry(b"%d" % number) for number in range(11)], "entries"),
    "data before a file": ([(DATA, 0, b"x", 0)], "more of a file"),
    "more data than announced": ([entry(b"f", size=2), (DATA, 0, b"abc", 0)], "more of a file"),
    "less data than announced": (
        [entry(b"f", size=2), (RESULT, 0, {"skipped": 0, "skips": []}, 0)],
        "less",
    ),
    "the next file too early": ([entry(b"f", size=2), entry(b"g")], "less"),
    "no answer to speak of": ([(RESULT, 0, {}, 0)], "skipped"),
}


@pytest.mark.parametrize("case", BAD_TREES)
async def test_a_tree_that_reaches_out_breaks_the_connection_and_touches_nothing(
    case: str, tmp_path: Path
) -> None:
    outside, into = tmp_path / "outside", tmp_path / "into"
    outside.mkdir()
    into.mkdir()
    (into / "link").symlink_to(outside)
    said, why = BAD_TREES[case]

    async def fetch(shell: Shell) -> None:
        await shell.get_tree("/tree", into, TreeLimits(size=1000, entries=10))

    assert why in await provoke(fetch, said, errors.ProtocolBroken)
    assert (names(outside), names(tmp_path)) == ([], ["into", "outside"])


async def test_a_tree_brings_no_rights_that_nobody_asked_for(tmp_path: Path) -> None:
    said: Said = [FOLDER, entry(b"d/f"), (RESULT, 0, {"skipped": 0, "skips": []}, 0)]

    async with greeted() as (guest, shell), anyio.create_task_group() as group:

        async def answer() -> None:
            number, _ = await guest.hear(wire.OPEN)
            await guest.stream.send(frames(number, said))

        group.start_soon(answer)
        await shell.get_tree("/tree", tmp_path)
    assert oct((tmp_path / "d").stat().st_mode & 0o7777) == "0o755"
    assert oct((tmp_path / "d" / "f").stat().st_mode & 0o7777) == "0o755"


ACTS: dict[str, Callable[[Shell], Awaitable[object]]] = {
    "usage": lambda shell: shell.usage(),
    "jobs": lambda shell: shell.jobs(),
    "fresh": lambda shell: shell.fresh(Identity(hostname="a")),
    "put": lambda shell: shell.put("/f", b"x"),
    "shutdown": lambda shell: shell.shutdown(),
}
NO_HOSTNAME: wire.Fields = {"done": [b"entropy", b"realtime_ns"]}
FULL: wire.Fields = {"code": b"failed", "text": b"ENOSPC"}
BAD_ANSWERS: list[tuple[str, bytes | Said, type[Exception]]] = [
    ("usage", [(RESULT, 0, {"uptime_ms": -1}, 0)], errors.ProtocolBroken),
    ("jobs", [(RESULT, 0, {"jobs": [b"a b c d"]}, 0)], errors.ProtocolBroken),
    ("jobs", [(RESULT, 0, {"jobs": [b"\xff 1 ended"]}, 0)], errors.ProtocolBroken),
    ("jobs", [(RESULT, 0, {"jobs": [b""] * 2000}, 0)], errors.ProtocolBroken),
    ("jobs", [(RESULT, 0, {"jobs": [b"a running -1"]}, 0)], errors.ProtocolBroken),
    ("jobs", [(RESULT, 0, {"jobs": [b"a running " + b"9" * 60]}, 0)], errors.ProtocolBroken),
    ("fresh", [(RESULT, 0, NO_HOSTNAME, 0)], errors.GuestRefused),
    ("fresh", [(RESULT, 0, {}, 0)], errors.ProtocolBroken),
    ("put", [(END, 0, b"", 0), (END, 0, b"", 0)], errors.UnknownOutcome),
    ("put", [(wire.ERROR, 0, FULL, 0)], errors.GuestRefused),
    ("shutdown", b"\xff" * 20, errors.UnknownOutcome),
]


@pytest.mark.parametrize(("act", "said", "error"), BAD_ANSWERS)
async def test_an_answer_that_says_nothing_is_not_taken_for_one(
    act: str, said: bytes | Said, error: type[Exception]
) -> None:
    await provoke(ACTS[act], said, error)


async def test_what_a_guest_says_harms_no_terminal() -> None:
    said: Said = [(wire.ERROR, 0, {"code": b"denied", "text": b"\x1b[2Jx\r\n\xff\xe2\x80\xae"}, 0)]
    text = await provoke(run, said, errors.GuestRefused)
    assert text.isprintable()


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        ({}, "agent"),
        ({**HELLO, "agent": b"x" * 1000}, "agent"),
        ({**HELLO, "boot_id": 7}, "boot_id"),
        ({**HELLO, "verbs": [b"x"] * 100}, "verbs"),
    ],
)
async def test_a_hello_that_says_nothing_is_refused(hello: wire.Fields, why: str) -> None:
    async with scripted() as (guest, host), anyio.create_task_group() as group:
        group.start_soon(guest.greet, hello)
        with anyio.fail_after(10), pytest.raises(errors.ProtocolBroken, match=why):
            async with open_shell(host):
                pass


async def test_a_guest_that_never_answers_is_unreachable_after_the_deadline() -> None:
    async with scripted() as (_, host):
        with anyio.fail_after(10), pytest.raises(errors.MachineUnreachable, match=r"within 0\.2 s"):
            async with open_shell(host, greeting_s=0.2):
                pass


async def test_a_guest_that_answers_an_older_nonce_for_ever_is_given_up() -> None:
    async with scripted() as (guest, host), anyio.create_task_group() as group:

        async def talk() -> None:
            junk = wire.preamble(bytes(16), 1, 1) * 1000
            try:
                while True:
                    await guest.stream.send(junk)
            except anyio.BrokenResourceError:
                pass

        group.start_soon(talk)
        with anyio.fail_after(30), pytest.raises(errors.ProtocolBroken, match="answer nothing"):
            async with open_shell(host, greeting_s=30):
                pass


async def test_a_guest_that_speaks_no_version_of_ours_is_refused() -> None:
    async with scripted() as (guest, host), anyio.create_task_group() as group:

        async def answer() -> None:
            nonce, _, _ = wire.read_preamble(await guest.answer())
            await guest.stream.send(wire.preamble(nonce, 0, 9))

        group.start_soon(answer)
        with anyio.fail_after(10), pytest.raises(errors.ProtocolBroken, match="version 9"):
            async with open_shell(host):
                pass


async def test_the_rest_of_an_older_connection_is_skipped() -> None:
    async with scripted() as (guest, host), anyio.create_task_group() as group:

        async def answer() -> None:
            old = wire.frame(wire.DATA, 1, os.urandom(60_000), 1)
            stale = wire.preamble(b"o" * 16, 1, 1) + wire.frame(wire.HELLO, 0, b"\0")
            await guest.stream.send(old[777:] + stale + wire.MARKER)
            await guest.greet()
            number, _ = await guest.hear(wire.OPEN)
            await guest.say(wire.RESULT, number, {})

        group.start_soon(answer)
        with anyio.fail_after(10):
            async with open_shell(host) as shell:
                await shell.ping()


async def test_a_guest_that_stops_answering_is_unreachable_and_not_waited_for_in_the_end() -> None:
    async with greeted() as (_, shell):
        with anyio.move_on_after(0.2) as scope:
            await shell.ping()
        assert scope.cancelled_caught


async def test_streams_that_never_close_leave_room_for_no_more_than_the_limit() -> None:
    async with greeted() as (guest, shell), anyio.create_task_group() as group:

        async def one() -> None:
            with contextlib.suppress(errors.Unavailable):
                await shell.exec(TRUE)

        for _ in range(wire.MAX_STREAMS):
            group.start_soon(one)
        numbers = [(await guest.hear(wire.OPEN))[0] for _ in range(wire.MAX_STREAMS)]
        group.start_soon(shell.ping)
        with anyio.move_on_after(0.2) as scope:
            await guest.hear(wire.OPEN)
        assert scope.cancelled_caught
        await guest.say(wire.ERROR, numbers[7], {"code": b"busy", "text": b""})
        number, fields = await guest.hear(wire.OPEN)
        assert fields["verb"] == b"ping"
        await guest.say(wire.RESULT, number, {})
        group.cancel_scope.cancel()


async def test_a_guest_may_not_open_more_streams_than_the_limit() -> None:
    async def serve(_: object) -> None:
        await anyio.sleep_forever()

    async with greeted() as (guest, shell), anyio.create_task_group() as group:

        async def open_many() -> None:
            number, _ = await guest.hear(wire.OPEN)
            await guest.say(wire.NOTE, number, {"port": 1})
            opens: Said = [(wire.OPEN, 2 * one, {"listener": number}, 0) for one in range(1, 200)]
            await guest.stream.send(frames(number, opens))
            await guest.ignore_the_rest()
            group.cancel_scope.cancel()

        group.start_soon(open_many)
        async with shell.reverse(Tcp(0), serve):
            await anyio.sleep_forever()
    with pytest.raises(errors.ProtocolBroken, match="more than 128"):
        await shell.ping()


async def test_a_connection_to_nobody_is_refused_and_no_more() -> None:
    async with greeted() as (guest, shell), anyio.create_task_group() as group:
        await guest.say(wire.OPEN, 2, {"listener": 5})
        number, fields = await guest.hear(wire.ERROR)
        assert (number, fields["code"]) == (2, b"failed")
        group.start_soon(shell.ping)
        number, _ = await guest.hear(wire.OPEN)
        await guest.say(wire.RESULT, number, {})


async def test_a_storm_of_events_leaves_the_latest_and_no_more() -> None:
    async with greeted() as (guest, shell), anyio.create_task_group() as group:
        for number in range(3000):
            await guest.say(wire.EVENT, 0, {"event": b"log", "text": b"x" * 1000, "n": number})

        async def answer() -> None:
            opened, _ = await guest.hear(wire.OPEN)
            await guest.say(wire.RESULT, opened, {})

        group.start_soon(answer)
        await shell.ping()  # its answer comes behind them all
        seen: list[int] = []
        async for event in shell.events():
            seen.append(event.figures["n"])
            if seen[-1] == 2999:
                break
        assert seen == list(range(3000 - 256, 3000))


async def test_a_guest_that_does_not_read_holds_up_only_those_who_send_to_it() -> None:
    async with greeted() as (guest, shell), anyio.create_task_group() as group:
        group.start_soon(shell.put, "/file", bytes(50_000_000))
        number, _ = await guest.hear(wire.OPEN)
        group.start_soon(shell.ping)
        # It takes in neither the file nor the ping, and goes on talking.
        for _ in range(1000):
            await guest.say(wire.EVENT, 0, {"event": b"log", "text": b"x" * 1000})
        assert (await anext(shell.events())).kind == "log"
        await guest.say(wire.ERROR, number, {"code": b"failed", "text": b"full"})
        group.cancel_scope.cancel()


async def test_a_guest_that_grants_itself_everything_by_never_reading_does_not_grow_the_host() -> (
    None
):
    """It sends as much as the host reads, and reads none of what it is granted for it."""
    async with greeted(60) as (guest, shell), anyio.create_task_group() as group:
        group.start_soon(shell.exec, TRUE)
        number, _ = await guest.hear(wire.OPEN)
        await guest.say(wire.NOTE, number, STARTED)
        before = resident_kib()
        with anyio.move_on_after(5):
            for _ in range(2000):  # 100 MB
                await guest.say(wire.DATA, number, bytes(50_000), 1)
                await anyio.lowlevel.checkpoint()
        assert resident_kib() - before < 30_000
        group.cancel_scope.cancel()


def resident_kib() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])
