"""What a run may take: at a limit it stands still with all it has, until somebody allows it more.

What stands still is the machine, so the program notices nothing of it and goes on in the middle of
its word, whatever program it is. That a run is paused is written down before its machine is, and
that it goes on after: a daemon that comes up in between pauses the machine once more. Above are the
steps of a run and whoever raises a budget; below, the machine and the way out of its guest.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.model.run import Budget, Measure, Pause, Step, Usage
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from microvm_orchestrator.egress.budget import Exhausted
    from microvm_orchestrator.lifecycle.egress import WayOut
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.machines import Machines
    from microvm_orchestrator.model.run import RunRecord

_log = log.get(__name__)

# An answer of a model that is on its way is heard to its end; one that hangs is not waited for.
_QUIET_S = 30.0
# Between two looks at a clock: not more often than a limit is written for, and not so seldom that
# an estimate of what comes would be worth nothing.
_LOOK_LEAST_S = 0.1
_LOOK_MOST_S = 5.0
# A store or a machine that did not do it now may do it then.
_AGAIN_S = 1.0
# Until a machine that stood still goes on.
_RESUME_S = 30.0


def wall_s(record: RunRecord) -> float:
    """How long the program of a run has run, without its pauses."""
    if record.began_at is None:
        return 0.0
    until = time.time() if record.paused is None else record.paused.at.timestamp()
    return max(0.0, round(until - record.began_at.timestamp() - record.paused_s, 3))


async def measured(run: Run, machine: RunningMachine, spent: Usage) -> Usage:
    """Tell all that a run has taken; a machine that has just ended tells nothing any more."""
    told: dict[str, float] = {"wall_s": wall_s(run.record)}
    with suppress(errors.OrchestratorError):
        usage = await machine.usage()
        told |= {"cpu_s": usage.cpu_s, "memory_peak_mib": usage.peak_mib}
    return spent.model_copy(update=told)


def taken(usage: Usage, measure: Measure) -> float:
    """Tell what a run has taken of one thing that it has a limit of."""
    match measure:
        case Measure.TOKENS:
            return usage.tokens_in + usage.tokens_out + usage.tokens_cached
        case Measure.COST_USD:
            return usage.cost_usd or 0.0
        case Measure.WALL_S:
            return usage.wall_s
        case Measure.CPU_S:
            return usage.cpu_s or 0.0


class Allowance:
    """The budget of one run, from the start of its program to the end."""

    def __init__(self, run: Run, machines: Machines, machine: RunningMachine) -> None:
        self._run = run
        self._machines = machines
        self._machine = machine
        # The limit that a request to a model has met.
        self._met: Measure | None = None
        self._noticed = anyio.Event()

    async def on_exhausted(self, limit: Exhausted) -> None:
        """Hear that a request waits, as nothing is left for it."""
        self._met = Measure(limit.measure)
        self._noticed.set()

    @asynccontextmanager
    async def kept(self, way_out: WayOut) -> AsyncGenerator[None]:
        """Let the run stand still at each limit, until the block ends."""
        async with beside(partial(self._keep, way_out)):
            yield
        if self._run.record.paused is not None:
            # The last it did was to end, or its machine was ended.
            with suppress(errors.MachineFailed, errors.StateForbids):
                await _go_on(self._run, self._machines, self._machine, self._run.record.budget)

    async def _keep(self, way_out: WayOut) -> None:
        while True:
            try:
                await self._keep_once(way_out)
            except errors.OrchestratorError as error:
                _log.warning("run_not_paused", run=self._run.record.run_id, reason=error.message)
                await anyio.sleep(_AGAIN_S)

    async def _keep_once(self, way_out: WayOut) -> None:
        run = self._run
        if run.record.paused is None:
            measure = await self._limit(way_out)
            with anyio.move_on_after(_QUIET_S):
                await way_out.egress.shut()
            await self._note(measure, await measured(run, self._machine, way_out.usage()))
        await stand(run, self._machines, self._machine)
        self._met, self._noticed = None, anyio.Event()
        way_out.allow(run.record.budget)

    async def _limit(self, way_out: WayOut) -> Measure:
        """Wait until a limit is reached."""
        while self._met is None:
            budget = self._run.record.budget
            usage = Usage(wall_s=wall_s(self._run.record))
            if budget.cpu_s is not None:
                usage = await measured(self._run, self._machine, way_out.usage())
            for measure in (Measure.WALL_S, Measure.CPU_S):
                limit = budget.of(measure)
                if limit is not None and taken(usage, measure) >= limit:
                    return measure
            with anyio.move_on_after(_until_next_look(budget, usage, self._machine.spec.vcpus)):
                await self._noticed.wait()
        return self._met

    async def _note(self, measure: Measure, usage: Usage) -> None:
        run = self._run
        limit = run.record.budget.of(measure) or 0.0
        pause = Pause(
            measure=measure, used=taken(usage, measure), limit=limit, at=moment(time.time())
        )
        run.said = f"paused: {pause.used:.10g} of {pause.limit:.10g} {measure} are used up"
        told = {"measure": measure, "used": pause.used, "limit": limit}
        with anyio.CancelScope(shield=True):
            await run.learn("paused", told, paused=pause, usage=usage)


def _until_next_look(budget: Budget, usage: Usage, vcpus: int) -> float | None:
    """Tell when a limit may be reached at the earliest, within reason; None for never."""
    left: list[float] = []
    if budget.wall_s is not None:
        left.append(budget.wall_s - usage.wall_s)
    if budget.cpu_s is not None:
        # Beside its processors a machine has threads for its disks.
        left.append((budget.cpu_s - (usage.cpu_s or 0.0)) / (vcpus + 1))
    return min(_LOOK_MOST_S, max(_LOOK_LEAST_S, min(left))) if left else None


async def stand(run: Run, machines: Machines, machine: RunningMachine) -> None:
    """Have a paused run's machine stand still, until somebody allows the run more.

    Raises: MachineLost when the machine ends meanwhile; what the store and the machine raise.
    """
    while run.record.paused is not None:
        news = run.news
        if run.raised is not None:
            await _go_on(run, machines, machine, run.raised)
            return
        if machine.state.ended:
            raise errors.MachineLost(f"its machine is {machine.state}: {machine.reason}")
        if machine.state is MachineState.RUNNING:
            with anyio.CancelScope(shield=True):
                await machines.pause(_id_of(run), run.by)
        # A machine may also be ended, or let go on, by somebody else.
        with anyio.move_on_after(_LOOK_MOST_S):
            await news.wait()


async def _go_on(run: Run, machines: Machines, machine: RunningMachine, budget: Budget) -> None:
    with anyio.CancelScope(shield=True):
        await let_go(run, machines, machine)
        paused_s = run.record.paused_s
        if run.record.paused is not None:
            paused_s += max(0.0, time.time() - run.record.paused.at.timestamp())
        await run.learn("resumed", paused=None, budget=budget, paused_s=round(paused_s, 3))
        run.raised, run.said = None, ""


async def let_go(run: Run, machines: Machines, machine: RunningMachine) -> None:
    """Have the machine of a run not stand still, so that its guest can be asked something."""
    if machine.state is MachineState.PAUSED:
        await machines.resume(_id_of(run), run.by)


def _id_of(run: Run) -> str:
    if run.record.machine_id is None:
        raise errors.MachineLost("it has no machine")
    return run.record.machine_id


async def resume(run: Run, wanted: Budget) -> None:
    """Let a run that is paused go on with other limits, and return once it does.

    Raises: StateForbids; InvalidInput for a limit that is reached already.
    """
    record = run.record
    if record.paused is None:
        raise errors.StateForbids(
            f"the run of task {record.task_id} is not paused: it is {record.step}"
        )
    if run.raised is not None:
        raise errors.StateForbids(f"the run of task {record.task_id} is being resumed already")
    refuse_reached(record, wanted)
    run.raised = wanted
    run.wake()
    with anyio.move_on_after(_RESUME_S):
        while run.raised is wanted and run.record.step is not Step.OVER:
            await run.news.wait()
    if run.record.paused is not None or run.record.step is Step.OVER:
        run.raised = None
        raise errors.StateForbids(
            f"the run of task {record.task_id} did not go on", hint="run_get shows how it stands"
        )


def refuse_reached(record: RunRecord, wanted: Budget) -> None:
    """Raises: InvalidInput when a run could not go on with these limits."""
    reached = [
        f"{used:.10g} {measure} are used up already, and the limit would be {limit:.10g}"
        for measure in Measure
        if (limit := wanted.of(measure)) is not None
        and (used := taken(record.usage, measure)) >= limit
    ]
    if reached:
        raise errors.InvalidInput(
            "; ".join(reached), hint="give a limit that is higher than what is used up"
        )
