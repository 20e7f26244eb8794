"""One life of a machine, heard as its kernel speaks: the ring tells most, the console the end.

Whoever watches is told lines, reports, what was lost, and that the machine does not answer. All of
it is bounded by how fast it is read: a guest that floods its log is read at a steady pace, its own
kernel writes over the rest, and how much that was is told. Nothing is queued here, so whoever is
slow is only told of more that was lost. Above stand the kernel logs of machines; below, the ring of
a guest and its console.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.kernel_log import parse_console
from microvm_orchestrator.clusters.kernel_reports import Reporter
from microvm_orchestrator.clusters.kernel_ring import (
    ANSWER_S,
    PREFIX,
    Heard,
    Place,
    follow_ring,
    is_mark,
)
from microvm_orchestrator.machine import console
from microvm_orchestrator.machines import Machines
from microvm_orchestrator.model.kernel_log import (
    KernelLine,
    KernelNews,
    KernelPlace,
    KernelReport,
    News,
    Source,
    Trouble,
)
from microvm_orchestrator.model.machine import Machine, MachineState

Key = TypeVar("Key")
Hear = Callable[[KernelNews], Awaitable[None]]

# A report without an end is told after so many looks at a console that says no more.
_QUIET_LOOKS = 8
# How often a console that is watched is looked at: the hypervisor writes it, not we.
_LOOK_EVERY_S = 0.25
# Of a console, at a look. One that runs further ahead is joined again near its end.
_AT_A_LOOK = 1 << 14
_BEHIND_MOST = 1 << 18
_JOINED_AGAIN = 1 << 16
# Of a ring: a whole one at once, then what a person can no longer read anyway.
_AT_ONCE = 1 << 20
_BYTES_EACH_S = 1 << 16
_AGAIN_S = 1.0
# A guest that does not show its log will not in a second either.
_REFUSED_AGAIN_S = 30.0
# How often it is asked whether it is still there, and how long it may take to say so.
_BEAT_S = 2.0
_SILENT_S = 4.0
# Between the look at a console and the mark that is written then.
_JUST_S = 2 * ANSWER_S
_SEEN_MOST = 1000
_SHOWN_MOST = 4000


class Allowance:
    """So much at once, and so much a second for as long as it lasts."""

    def __init__(self, at_once: float, each_s: float) -> None:
        self._at_once = self._left = at_once
        self._each_s = each_s
        self._at = 0.0

    def spend(self, amount: float) -> float:
        """Take it, and return for how many seconds there is nothing left."""
        now = anyio.current_time()
        earned = (now - self._at) * self._each_s
        self._left = min(self._at_once, self._left + earned) - amount
        self._at = now
        return max(0.0, -self._left / self._each_s)

    def spend_one(self) -> bool:
        """Take one if there is one."""
        self.spend(0)
        if self._left < 1:
            return False
        self._left -= 1
        return True


class KernelWatch:
    """What is heard of one machine from a start to its end."""

    def __init__(
        self, machines: Machines, machine: Machine, start: KernelPlace, hear: Hear
    ) -> None:
        self._machines = machines
        self._machine = machine
        self._start = start
        self._hear = hear
        self._place = Place(start.boot_id, start.seq)
        # Of the last record, and behind the last of the console.
        self._timestamp = start.timestamp
        self._offset = start.console_offset
        self._behind_mark = start.mark is None
        self._pace = Allowance(_AT_ONCE, _BYTES_EACH_S)
        # Both tell of the same, at the same time by the kernel's clock.
        self._seen: dict[tuple[Trouble, str, float | None], Source] = {}
        self._shown: dict[tuple[str, float], Source] = {}
        # Of the ring; and for how many looks at the console it has said nothing more.
        self._reporter = Reporter()
        self._quiet = 0
        self._answers = True

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ring)
            tasks.start_soon(self._beat)
            await self._console()
            tasks.cancel_scope.cancel()
        await self._report(self._reporter.end(), Source.RING)

    # The ring

    async def _ring(self) -> None:
        try:
            running = self._machines.live(self._machine)
        except errors.StateForbids:
            return  # it has ended; its console has the last word
        while True:
            again_s = _AGAIN_S
            try:
                shell = await running.reached()
                async with aclosing(follow_ring(shell, self._place)) as pieces:
                    async for piece in pieces:
                        await self._take(piece)
                        await anyio.sleep(self._pace.spend(piece.size))
            except errors.StateForbids:
                return
            except errors.GuestRefused as error:
                await self._is_there(there=False, why=error.message)
                again_s = _REFUSED_AGAIN_S
            except errors.OrchestratorError:
                pass  # who asks whether it is there tells it
            await anyio.sleep(again_s)

    async def _take(self, piece: Heard) -> None:
        boot_id = self._place.boot_id
        if boot_id != self._start.boot_id:
            # Of another boot, all is new.
            self._behind_mark, self._timestamp = True, None
        lost = piece.lost
        lines = piece.lines
        if not self._behind_mark:
            lines, gone = self._later(lines)
            lost += gone
        if lost:
            await self._hear(KernelNews(News.DROPPED, Source.RING, count=lost, boot_id=boot_id))
        fresh = [line for line in lines if not is_mark(line) and self._show(line, Source.RING)]
        if fresh:
            self._quiet = 0
        for line, count in _coalesced(fresh):
            self._timestamp = line.timestamp
            await self._hear(
                KernelNews(News.LINE, Source.RING, line=line, count=count, boot_id=boot_id)
            )
            await self._report(self._reporter.feed(line), Source.RING)

    def _later(self, lines: Sequence[KernelLine]) -> tuple[Sequence[KernelLine], int]:
        """Give what stands behind the mark; where that is gone, at least a line is, too."""
        begun = self._start.timestamp
        for index, line in enumerate(lines):
            if line.text == f"{PREFIX}{self._start.mark}":
                self._behind_mark = True
                return lines[index + 1 :], 0
            if begun is not None and line.timestamp is not None and line.timestamp > begun:
                self._behind_mark = True
                return lines[index:], 1
        return (), 0

    # Whether it is there

    async def _beat(self) -> None:
        while self._machines.runs(self._machine):
            await anyio.sleep(_BEAT_S)
            why = f"its guest has not answered for {_SILENT_S:g} s"
            try:
                running = self._machines.live(self._machine)
                if running.state is MachineState.PAUSED:
                    why = "it is paused"
                else:
                    with anyio.move_on_after(_SILENT_S):
                        await (await running.reached()).ping()
                        why = ""
            except errors.StateForbids:
                return
            except errors.OrchestratorError as error:
                why = error.message
            await self._is_there(there=not why, why=why)

    async def _is_there(self, *, there: bool, why: str) -> None:
        if there is self._answers:
            return
        self._answers = there
        state = MachineState.RUNNING
        if self._machines.runs(self._machine):
            state = self._machines.live(self._machine).state
        if state.ended:
            return  # which is told by who waits for that
        await self._hear(KernelNews(News.NODE, state=state, answers=there, reason=why))

    # The console

    async def _console(self) -> None:
        path = self._machines.console(self._machine)
        rest, quiet = b"", 0
        reporter = Reporter()
        # Lines are told a look later than they are read: the ring knows more of them.
        waiting: list[KernelLine] = []
        while True:
            # In this order: what it said last is read once it is known to have ended.
            runs = self._machines.runs(self._machine)
            begin, data = await anyio.to_thread.run_sync(_look, path, self._offset)
            if begin > self._offset:
                gone = begin - self._offset
                await self._hear(KernelNews(News.DROPPED, Source.CONSOLE, count=gone))
                rest = b""
            self._offset = begin + len(data)
            *whole, rest = (rest + data).split(b"\n")
            rest = rest[-console.TAIL :]
            if not runs and not data:
                whole.append(rest)
            quiet = 0 if data else quiet + 1
            await self._tell_of_console(waiting, reporter)
            waiting = [
                line
                for line in parse_console(b"\n".join(whole)).lines
                if line.from_kernel and not is_before(line, self._start.timestamp)
            ]
            if not data and (not runs or quiet == _QUIET_LOOKS):
                await self._tell_of_console(waiting, reporter)
                waiting = []
                await self._report_of_console(reporter.end())
                if not runs:
                    return
            self._quiet += 1
            if self._quiet == _QUIET_LOOKS:
                await self._report(self._reporter.end(), Source.RING)
            if runs:
                await anyio.sleep(_LOOK_EVERY_S)

    async def _tell_of_console(self, lines: Iterable[KernelLine], reporter: Reporter) -> None:
        for line in lines:
            if not is_mark(line) and self._show(line, Source.CONSOLE):
                await self._hear(KernelNews(News.LINE, Source.CONSOLE, line=line))
            await self._report_of_console(reporter.feed(line))

    async def _report_of_console(self, reports: list[KernelReport]) -> None:
        """Tell what the console says, and before it what the ring said earlier."""
        begun = self._reporter.open
        if begun is not None and any(
            report.trouble is not begun.trouble
            and report.timestamp is not None
            and (begun.timestamp or 0) < report.timestamp
            for report in reports
        ):
            await self._report(self._reporter.end(), Source.RING)
        await self._report(reports, Source.CONSOLE)

    # Both

    def _show(self, line: KernelLine, source: Source) -> bool:
        """Tell whether a line was not shown yet; one without a time cannot be told from others."""
        if line.timestamp is None:
            return True
        before = _remember(self._shown, (line.text, line.timestamp), source, _SHOWN_MOST)
        return before is None or before is source

    async def _report(self, reports: list[KernelReport], source: Source) -> None:
        for report in reports:
            key = (report.trouble, report.headline, report.timestamp)
            if _remember(self._seen, key, source, _SEEN_MOST) is None:
                boot_id, seq = self._place.boot_id, self._place.seq
                place = KernelPlace(self._offset, None, seq, boot_id, self._timestamp)
                await self._hear(
                    KernelNews(News.REPORT, source, report=report, boot_id=boot_id, place=place)
                )


def is_before(line: KernelLine, begun: float | None) -> bool:
    """Whether a line stands behind the offset of a mark, and was said just before it."""
    if line.timestamp is None or begun is None:
        return False
    # What is much earlier is of another boot, and so later.
    return begun - _JUST_S < line.timestamp < begun


def _look(path: Path, offset: int) -> tuple[int, bytes]:
    """Read on, from near the end where too much has come to read all of it."""
    size = console.size(path)
    if size - offset > _BEHIND_MOST:
        offset = size - _JOINED_AGAIN
    return console.read(path, offset, _AT_A_LOOK)


def _remember(known: dict[Key, Source], key: Key, source: Source, most: int) -> Source | None:
    """Remember a key among the latest; tell who told of it before."""
    before = known.get(key)
    if before is None:
        known[key] = source
        if len(known) > most:
            del known[next(iter(known))]
    return before


def _coalesced(lines: Iterable[KernelLine]) -> list[tuple[KernelLine, int]]:
    """Give each line once, with how often it was said on end."""
    told: list[tuple[KernelLine, int]] = []
    for line in lines:
        last, count = told[-1] if told else (None, 0)
        if last is not None and (last.text, last.level) == (line.text, line.level):
            told[-1] = (last, count + 1)
        else:
            told.append((line, 1))
    return told
