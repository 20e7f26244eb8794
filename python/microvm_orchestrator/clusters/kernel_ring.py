"""The ring of a guest's kernel, by what runs in the guest: marked, read as a whole, and followed.

/dev/kmsg is read where the guest has a Python, since whoever clears the log clears it for `dmesg`
only; elsewhere it is `dmesg -r`, which every guest has. Everything that comes back is a guest's
word, and bounded. Above stand the kernel logs of machines; below, the way into a guest.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.kernel_log import (
    MAX_BYTES,
    KernelLines,
    kmsg_records,
    parse_kmsg,
    parse_raw,
)
from microvm_orchestrator.machine.shell import Channel, Command, Finished, Shell
from microvm_orchestrator.model.kernel_log import KernelLine

PREFIX = "microvm-mark "
# A guest under emulation on a busy host took four seconds for a ring of a megabyte.
ANSWER_S = 45.0
_LONGEST_RECORD = 1 << 16
_BOOT_ID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\n")

# A program's word, and no trouble: facility `user`, level `info`.
_MARK = """
cat /proc/sys/kernel/random/boot_id || exit
echo "<14>$1" > /dev/kmsg || exit
dmesg -r | grep -F -e "$1"
"""
_READ = """
cat /proc/sys/kernel/random/boot_id || exit
if command -v python3 > /dev/null; then
    echo kmsg
    python3 -IS -c "$2" | tail -c "$1"
else
    echo raw
    dmesg -r | tail -c "$1"
fi
"""
_READ_ALL = """
import os
ring = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
while True:
    try:
        os.write(1, os.read(ring, 16384))
    except BlockingIOError:
        break
    except BrokenPipeError:
        pass # what came next was written over: it goes on behind that
"""


# Reading by a Python goes on behind what was written over; a `cat` ends there, and begins anew.
_FOLLOW = """
cat /proc/sys/kernel/random/boot_id || exit
if command -v python3 > /dev/null; then
    exec python3 -IS -c "$1"
fi
while [ -r /dev/kmsg ]; do
    cat /dev/kmsg
    sleep 1
done
"""
_FOLLOW_ALL = """
import os
ring = os.open("/dev/kmsg", os.O_RDONLY)
while True:
    try:
        record = os.read(ring, 16384)
    except BrokenPipeError:
        continue
    os.write(1, record)
"""
_SEQ = re.compile(rb"[0-9]{1,4},([0-9]{1,20}),", re.ASCII)
# More than a ring can lose; a guest may say any number.
_MOST_LOST = 10**12


@dataclass(slots=True)
class Place:
    """How far a ring was followed: the boot, and the number of the last record."""

    boot_id: str | None = None
    seq: int | None = None

    def enter(self, boot_id: str) -> None:
        """Another boot counts anew."""
        if boot_id != self.boot_id:
            self.boot_id, self.seq = boot_id, None

    def later(self, lines: list[bytes]) -> tuple[list[bytes], int]:
        """Go on to the last of these records; give those that are new, and how many are missing."""
        new: list[bytes] = []
        lost = 0
        for line in lines:
            match = _SEQ.match(line)
            if match is None:
                continue  # it describes a device
            seq = int(match[1])
            if self.seq is not None:
                if seq <= self.seq:
                    continue
                lost += seq - self.seq - 1
            self.seq = seq
            new.append(line)
        return new, min(lost, _MOST_LOST)


@dataclass(frozen=True, slots=True)
class Heard:
    """A piece of what a ring said."""

    lines: tuple[KernelLine, ...]
    # Records that were written over before they could be read.
    lost: int
    # In bytes, as it came.
    size: int


@dataclass(frozen=True, slots=True)
class Marked:
    boot_id: str
    timestamp: float | None


@dataclass(frozen=True, slots=True)
class Ring:
    boot_id: str
    read: KernelLines


async def write_mark(shell: Shell, mark: str) -> Marked:
    """Write a mark, and see that it stands there. Raises: GuestRefused, MachineUnreachable."""
    finished = await _run(shell, Command(["sh", "-c", _MARK, "sh", PREFIX + mark]))
    boot_id, shown = _begun(finished)
    line = find_mark(parse_raw(shown), mark)
    if line is None:
        raise errors.GuestRefused(
            f"the guest's kernel does not show the mark it was given{_said(finished)}",
            hint="whoever commands run as must be allowed to write /dev/kmsg and to run dmesg",
        )
    return Marked(boot_id, line.timestamp)


async def read_ring(shell: Shell, timeout_s: float = ANSWER_S) -> Ring:
    """Read all that the ring holds. Raises: GuestRefused, MachineUnreachable."""
    command = Command(["sh", "-c", _READ, "sh", str(MAX_BYTES), _READ_ALL])
    finished = await _run(shell, command, timeout_s)
    boot_id, said = _begun(finished)
    way, _, data = said.partition(b"\n")
    parse = parse_kmsg if way == b"kmsg" else parse_raw
    read = await anyio.to_thread.run_sync(parse, data)
    if not read.lines and finished.stderr:
        raise errors.GuestRefused(
            f"the guest does not show what its kernel says{_said(finished)}",
            hint="whoever commands run as must be allowed to read /dev/kmsg or to run dmesg",
        )
    if len(data) >= MAX_BYTES and not read.cut:
        read = KernelLines(read.lines, cut=True)
    return Ring(boot_id, read)


def find_mark(read: KernelLines, mark: str) -> KernelLine | None:
    return next((line for line in reversed(read.lines) if line.text == PREFIX + mark), None)


def is_mark(line: KernelLine) -> bool:
    return line.text.startswith(PREFIX)


async def follow_ring(shell: Shell, place: Place) -> AsyncGenerator[Heard]:
    """Give the records of the ring behind a place, and those that come, as they come.

    The guest is read no faster than the caller asks for more: what its kernel writes over meanwhile
    is counted by the numbers that are missing. It goes on until the way into the guest ends.
    Raises: GuestRefused when the guest does not show them; UnknownOutcome when the way breaks.
    """
    command = Command(["sh", "-c", _FOLLOW, "sh", _FOLLOW_ALL])
    async with shell.stream(command, stdin=False) as process:
        rest, begun = b"", False
        async for piece in process:
            if piece.channel is not Channel.STDOUT:
                continue
            *whole, rest = (rest + piece.data).split(b"\n")
            rest = rest[-_LONGEST_RECORD:]
            if whole and not begun:
                place.enter(_boot(whole.pop(0) + b"\n"))
                begun = True
            records, lost = place.later(whole)
            yield Heard(tuple(kmsg_records(records)), lost, len(piece.data))
        ended = await process.wait()
    raise errors.GuestRefused(f"the guest shows nothing of its log: status {ended.code}")


def _boot(line: bytes) -> str:
    match = _BOOT_ID.match(line)
    if match is None:
        raise errors.GuestRefused("the guest does not say which boot this is")
    return match[0].decode().strip()


async def _run(shell: Shell, command: Command, timeout_s: float = ANSWER_S) -> Finished:
    with anyio.move_on_after(timeout_s):
        return await shell.exec(command, output_cap=MAX_BYTES + 4096)
    raise errors.MachineUnreachable(f"the guest has not answered within {timeout_s:.0f} s")


def _begun(finished: Finished) -> tuple[str, bytes]:
    match = _BOOT_ID.match(finished.stdout)
    if match is None:
        raise errors.GuestRefused(f"the guest does not say which boot this is{_said(finished)}")
    return match[0].decode().strip(), finished.stdout[match.end() :]


def _said(finished: Finished) -> str:
    text = finished.stderr[-300:].decode(errors="replace").strip()
    shown = "".join(char if char.isprintable() else " " for char in text)
    return f": {shown}" if shown else ""
