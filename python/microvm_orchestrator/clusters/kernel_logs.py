"""What the kernels of machines say: marked, collected and watched, also when they say it no more.

A machine that answers is asked for its kernel's ring. One that does not has said its last words on
its console, which the host keeps: where these tell of trouble they are the answer, and where they
do not, that the machine does not answer is. So a crashed kernel never looks like a quiet one. The
marks of a machine are stored, and go with it; where a mark is gone from the ring, that is told.
Above is the service; below, the machines, the store and the ring of a guest.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectSendStream

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.kernel_log import KernelLines, parse_console
from microvm_orchestrator.clusters.kernel_reports import Reporter, likeness, reports_of
from microvm_orchestrator.clusters.kernel_ring import (
    ANSWER_S,
    Ring,
    find_mark,
    follow_from,
    read_ring,
    write_mark,
)
from microvm_orchestrator.machine import console
from microvm_orchestrator.machine.record import Record as MachineRecord
from microvm_orchestrator.machines import Machines
from microvm_orchestrator.model.kernel_log import (
    MARKS,
    KernelLine,
    KernelLog,
    KernelMark,
    KernelMarks,
    KernelReport,
    Since,
    Source,
    Trouble,
)
from microvm_orchestrator.model.machine import Machine, MachineState
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import Store
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById

# Of a machine; the oldest make room.
MARKS_MOST = 100
_MARK = re.compile(r"[A-Za-z0-9-]{1,100}")
# One whose console tells of a panic may still answer: a program can write such a line.
_PANICKED_S = 5.0
# How often a console that is watched is looked at: the hypervisor writes it, not we.
_LOOK_EVERY_S = 0.25
# A report without an end is told after so many looks at a console that says no more.
_QUIET_LOOKS = 8
# Of a console, at a look: a guest that floods it falls behind, and nobody else waits for it.
_AT_A_LOOK = 1 << 16
# Reports that a watcher has not taken; more are counted only.
_BACKLOG = 100
_AGAIN_S = 1.0
# Between the look at a console and the mark that is written then.
_JUST_S = 2 * ANSWER_S
_SEEN_MOST = 1000


@dataclass(slots=True)
class Watched:
    """The reports of a machine, as they come; the end is that of the machine."""

    reports: AsyncIterator[KernelReport]
    # That came while the watcher was behind.
    missed: int = 0


class KernelLogs:
    """The kernel logs of the machines of one daemon."""

    def __init__(self, store: Store, machines: Machines) -> None:
        self._store = store
        self._machines = machines

    async def reconcile(self) -> None:
        """Forget the marks of machines that are gone."""
        known = {machine.machine_id for machine in await self._machines.visible(SYSTEM)}
        for record in await every_record(self._store, MARKS, SYSTEM):
            if record.id not in known:
                await self._store.erase(MARKS, record.id, SYSTEM)

    async def mark(self, machine: Machine, by: Actor, mark: str | None = None) -> KernelMark:
        """Write a mark into a machine's log, of its own or one that others get too.

        Raises: StateForbids when it does not run; MachineUnreachable; GuestRefused; InvalidInput.
        """
        mark = mark or str(uuid4())
        if not _MARK.fullmatch(mark):
            raise errors.InvalidInput("a mark is of letters, digits and dashes, at most 100")
        self._refuse_paused(machine)
        running = self._machines.live(machine)
        path = self._machines.console(machine)
        offset = await anyio.to_thread.run_sync(console.size, path)
        marked = await write_mark(await running.reached(), mark)
        made = KernelMark(
            mark=mark,
            machine_id=machine.machine_id,
            boot_id=marked.boot_id,
            timestamp=marked.timestamp,
            console_offset=offset,
            marked_at=moment(await self._store.now()),
        )
        await self._remember(made, by)
        return made

    async def collect(self, machine: Machine, since: str | None = None) -> KernelLog:
        """Read what a machine's kernel has said, from a mark on or all of it.

        Raises: NotFound for a mark that this machine was not given; StateForbids or
            MachineUnreachable when it does not answer, and its console tells of no trouble.
        """
        mark = None if since is None else await self._find(machine, since)
        path = self._machines.console(machine)
        said = await anyio.to_thread.run_sync(_said, path, mark)
        panicked = any(report.trouble is Trouble.PANIC for report in said.reports)
        try:
            ring = await self._ring(machine, _PANICKED_S if panicked else ANSWER_S)
        except errors.UnknownOutcome as error:
            why: errors.OrchestratorError = errors.MachineUnreachable(
                f"machine {machine.machine_id} stopped answering: {error.message}"
            )
        except (errors.MachineFailed, errors.StateForbids) as error:
            why = error
        else:
            return await anyio.to_thread.run_sync(_of_ring, machine, ring, mark, said)
        # It may have said its last words while it was asked.
        said = await anyio.to_thread.run_sync(_said, path, mark)
        if not said.reports:
            raise why
        return KernelLog(
            machine_id=machine.machine_id,
            source=Source.CONSOLE,
            since=Since.BEGINNING if mark is None else Since.MARK,
            lines=said.read.lines,
            reports=said.reports,
            more_reports=said.more,
            cut=said.read.cut,
            reason=why.message,
        )

    @asynccontextmanager
    async def watch(self, machine: Machine, by: Actor) -> AsyncGenerator[Watched]:
        """Tell the reports of a machine's kernel from now on, each once, until the block ends.

        Raises: as `mark`.
        """
        mark = await self.mark(machine, by)
        send, receive = anyio.create_memory_object_stream[KernelReport](_BACKLOG)
        watched = Watched(receive)
        watch = _Watch(self._machines, machine, mark, send, watched)
        async with anyio.create_task_group() as tasks, receive:
            tasks.start_soon(watch.run)
            yield watched
            tasks.cancel_scope.cancel()

    async def forget_machine(self, machine_id: str) -> None:
        """A machine was deleted, and its marks go with it."""
        with contextlib.suppress(errors.NotFound):
            await self._store.erase(MARKS, machine_id, SYSTEM)

    async def _ring(self, machine: Machine, timeout_s: float) -> Ring:
        self._refuse_paused(machine)
        running = self._machines.live(machine)
        shell = None
        with anyio.move_on_after(timeout_s):
            shell = await running.reached()
        if shell is None:
            raise errors.MachineUnreachable(f"machine {machine.machine_id} is not reached")
        return await read_ring(shell, timeout_s)

    @staticmethod
    def _refuse_paused(machine: Machine) -> None:
        if machine.state is MachineState.PAUSED:
            raise errors.StateForbids(
                f"machine {machine.machine_id} is paused", hint="machine_resume lets it answer"
            )

    async def _find(self, machine: Machine, mark: str) -> KernelMark:
        marks, _ = await self._marks(machine.machine_id)
        found = next((each for each in marks.marks if each.mark == mark), None)
        if found is None:
            raise errors.NotFound(
                f"machine {machine.machine_id} was given no mark {mark}",
                hint=f"kernel_log_mark gives one; of each machine the last {MARKS_MOST} are known",
            )
        return found

    async def _marks(self, machine_id: str) -> tuple[KernelMarks, int]:
        record = await self._store.query(RecordById(MARKS, machine_id), SYSTEM)
        if record is None:
            return KernelMarks(machine_id=machine_id), 0
        return KernelMarks.model_validate(record.body), record.version

    async def _remember(self, mark: KernelMark, by: Actor) -> None:
        while True:
            marks, version = await self._marks(mark.machine_id)
            kept = KernelMarks(machine_id=mark.machine_id, marks=[*marks.marks, mark][-MARKS_MOST:])
            record = Record(MARKS, mark.machine_id, kept.model_dump(mode="json"))
            with contextlib.suppress(errors.VersionMoved, errors.AlreadyExists):
                await self._store.save(record, by, expect=version)
                return


@dataclass(frozen=True, slots=True)
class _Said:
    """What stands on a console."""

    read: KernelLines
    reports: tuple[KernelReport, ...]
    more: int


def _said(path: Path, mark: KernelMark | None) -> _Said:
    """Read the console from a mark on, or from the last start of the machine."""
    if mark is not None:
        begin = mark.console_offset
    else:
        made = MachineRecord(path.parent).read()
        begin = made.console_from if made else 0
    newest = max(begin, console.size(path) - console.KEPT)
    at, data = console.read(path, newest, console.KEPT)
    read = parse_console(data)
    if mark is not None:
        later = tuple(line for line in read.lines if not _is_before(line, mark))
        read = replace(read, lines=later)
    reports, more = reports_of(read.lines)
    return _Said(replace(read, cut=read.cut or at > begin), reports, more)


def _is_before(line: KernelLine, mark: KernelMark) -> bool:
    """Whether a line stands behind the offset of a mark, and was said just before it."""
    if line.timestamp is None or mark.timestamp is None:
        return False
    # What is much earlier is of another boot, and so later.
    return mark.timestamp - _JUST_S < line.timestamp < mark.timestamp


def _of_ring(machine: Machine, ring: Ring, mark: KernelMark | None, said: _Said) -> KernelLog:
    lines, since, reason = ring.read.lines, Since.BEGINNING, ""
    extra: tuple[KernelReport, ...] = ()
    if mark is not None:
        line = find_mark(ring.read, mark.mark)
        if line is not None:
            lines, since = lines[lines.index(line) + 1 :], Since.MARK
        else:
            since = Since.LOST
            again = ring.boot_id != mark.boot_id
            reason = (
                "its kernel has started again since the mark"
                if again
                else "the ring has gone past the mark, or was cleared"
            )
            # What the ring has lost may stand on the console.
            extra = said.reports
    reports, more = reports_of(lines)
    told = {likeness(report) for report in reports}
    earlier = tuple(report for report in extra if likeness(report) not in told)
    return KernelLog(
        machine_id=machine.machine_id,
        source=Source.RING,
        since=since,
        lines=lines,
        reports=earlier + reports,
        more_reports=more,
        cut=since is not Since.MARK and (since is Since.LOST or ring.read.cut),
        reason=reason,
    )


class _Watch:
    """One watch: the ring tells most, the console what comes when the kernel is at its end."""

    def __init__(
        self,
        machines: Machines,
        machine: Machine,
        mark: KernelMark,
        send: MemoryObjectSendStream[KernelReport],
        watched: Watched,
    ) -> None:
        self._machines = machines
        self._machine = machine
        self._mark = mark
        self._send = send
        self._watched = watched
        # Both tell of the same, at the same time by the kernel's clock.
        self._seen: dict[tuple[Trouble, str, float | None], None] = {}
        # Of the ring; and for how many looks at the console it has said nothing more.
        self._reporter = Reporter()
        self._quiet = 0

    async def run(self) -> None:
        async with self._send:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._ring)
                await self._console()
                tasks.cancel_scope.cancel()
            self._tell(self._reporter.end())

    def _tell(self, reports: list[KernelReport]) -> None:
        for report in reports:
            key = (report.trouble, report.headline, report.timestamp)
            if key in self._seen:
                continue
            self._seen[key] = None
            if len(self._seen) > _SEEN_MOST:
                del self._seen[next(iter(self._seen))]
            try:
                self._send.send_nowait(report)
            except anyio.WouldBlock:
                self._watched.missed += 1

    def _tell_of_console(self, reports: list[KernelReport]) -> None:
        """Tell what the console says, and before it what the ring said earlier."""
        begun = self._reporter.open
        if begun is not None and any(
            report.trouble is not begun.trouble
            and report.timestamp is not None
            and (begun.timestamp or 0) < report.timestamp
            for report in reports
        ):
            self._tell(self._reporter.end())
        self._tell(reports)

    async def _ring(self) -> None:
        running = self._machines.live(self._machine)
        while True:
            try:
                shell = await running.reached()
                async with aclosing(follow_from(shell, self._mark.mark)) as lines:
                    async for line in lines:
                        self._quiet = 0
                        self._tell(self._reporter.feed(line))
            except errors.StateForbids:
                return  # it has ended; its console has the last word
            except errors.OrchestratorError:
                await anyio.sleep(_AGAIN_S)

    async def _console(self) -> None:
        path = self._machines.console(self._machine)
        offset, rest, quiet = self._mark.console_offset, b"", 0
        reporter = Reporter()
        while True:
            # In this order: what it said last is read once it is known to have ended.
            runs = self._machines.runs(self._machine)
            begin, data = await anyio.to_thread.run_sync(console.read, path, offset, _AT_A_LOOK)
            offset = begin + len(data)
            *whole, rest = (rest + data).split(b"\n")
            rest = rest[-console.TAIL :]
            if not runs and not data:
                whole.append(rest)
            quiet = 0 if data else quiet + 1
            for line in parse_console(b"\n".join(whole)).lines:
                if not _is_before(line, self._mark):
                    self._tell_of_console(reporter.feed(line))
            if not data and (not runs or quiet == _QUIET_LOOKS):
                self._tell_of_console(reporter.end())
                if not runs:
                    return
            self._quiet += 1
            if self._quiet == _QUIET_LOOKS:
                self._tell(self._reporter.end())
            if runs:
                await anyio.sleep(_LOOK_EVERY_S)
