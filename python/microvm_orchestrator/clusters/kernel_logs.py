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
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.kernel_log import KernelLines, parse_console
from microvm_orchestrator.clusters.kernel_reports import likeness, reports_of
from microvm_orchestrator.clusters.kernel_ring import (
    ANSWER_S,
    Ring,
    find_mark,
    read_ring,
    write_mark,
)
from microvm_orchestrator.clusters.kernel_watch import Hear, KernelWatch, is_before
from microvm_orchestrator.machine import console
from microvm_orchestrator.machine.record import Record as MachineRecord
from microvm_orchestrator.machines import Machines
from microvm_orchestrator.model.kernel_log import (
    MARKS,
    KernelLog,
    KernelMark,
    KernelMarks,
    KernelNews,
    KernelPlace,
    KernelReport,
    News,
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
# A node that does not answer is watched all the same: its console may speak.
_BEGIN_S = 10.0


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

    async def begin(self, machine: Machine, since: str | None = None) -> KernelPlace | None:
        """Tell from where on a machine is heard: from a mark, or from now; None if it does not run.

        For `now` a line is written into its log, unless it does not answer.
        Raises: NotFound for a mark that this machine was not given.
        """
        if since is not None:
            mark = await self._find(machine, since)
            return KernelPlace(mark.console_offset, mark.mark, None, mark.boot_id, mark.timestamp)
        if not self._machines.runs(machine):
            return None
        offset = await anyio.to_thread.run_sync(console.size, self._machines.console(machine))
        mark = str(uuid4())
        with contextlib.suppress(errors.OrchestratorError), anyio.move_on_after(_BEGIN_S):
            self._refuse_paused(machine)
            marked = await write_mark(await self._machines.live(machine).reached(), mark)
            return KernelPlace(offset, mark, None, marked.boot_id, marked.timestamp)
        return KernelPlace(offset)

    async def follow(self, machine_id: str, start: KernelPlace | None, hear: Hear) -> None:
        """Tell what is heard of a machine's kernel, over all its lives, until it is deleted.

        Nothing is read while `hear` takes its time, and what is lost by that is told.
        """
        while True:
            try:
                machine = await self._machines.get(machine_id, SYSTEM)
                if start is not None:
                    await KernelWatch(self._machines, machine, start, hear).run()
                    machine = await self._machines.get(machine_id, SYSTEM)
                if not self._machines.runs(machine):
                    state, why = machine.state, machine.reason
                    await hear(KernelNews(News.NODE, state=state, answers=False, reason=why))
                    await self._machines.until_it_runs(machine_id)
            except errors.NotFound:
                await hear(KernelNews(News.NODE, answers=False, reason="its machine is gone"))
                return
            path = self._machines.console(machine)
            start = KernelPlace(await anyio.to_thread.run_sync(_beginning, path))
            why = "it was started"
            await hear(KernelNews(News.NODE, state=MachineState.RUNNING, reason=why, place=start))

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
    begin = _beginning(path) if mark is None else mark.console_offset
    newest = max(begin, console.size(path) - console.KEPT)
    at, data = console.read(path, newest, console.KEPT)
    read = parse_console(data)
    if mark is not None:
        later = tuple(line for line in read.lines if not is_before(line, mark.timestamp))
        read = replace(read, lines=later)
    reports, more = reports_of(read.lines)
    return _Said(replace(read, cut=read.cut or at > begin), reports, more)


def _beginning(path: Path) -> int:
    """Where the console stood when the machine was last started."""
    made = MachineRecord(path.parent).read()
    return made.console_from if made else 0


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
