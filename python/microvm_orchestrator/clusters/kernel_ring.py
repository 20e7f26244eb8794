"""The ring of a guest's kernel, by what runs in the guest: marked, read as a whole, and followed.

/dev/kmsg is read where the guest has a Python, since whoever clears the log clears it for `dmesg`
only; elsewhere it is `dmesg -r`, which every guest has. Everything that comes back is a guest's
word, and bounded. Above stand the kernel logs of machines; below, the way into a guest.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
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


async def follow_ring(shell: Shell) -> AsyncGenerator[KernelLine]:
    """Give all lines of the ring, and those that come, until the way into the guest ends.

    Raises: GuestRefused when the guest does not show them; UnknownOutcome when the way breaks.
    """
    async with shell.stream(Command(["cat", "/dev/kmsg"]), stdin=False) as process:
        rest = b""
        async for piece in process:
            if piece.channel is not Channel.STDOUT:
                continue
            *whole, rest = (rest + piece.data).split(b"\n")
            for line in kmsg_records(whole):
                yield line
            rest = rest[-_LONGEST_RECORD:]
        ended = await process.wait()
    raise errors.GuestRefused(f"the guest's log came to an end: status {ended.code}")


async def follow_from(shell: Shell, mark: str) -> AsyncGenerator[KernelLine]:
    """Give the lines behind a mark. Raises: as `follow_ring`."""
    behind = False
    async with aclosing(follow_ring(shell)) as lines:
        async for line in lines:
            if behind:
                yield line
            behind = behind or line.text == PREFIX + mark


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
