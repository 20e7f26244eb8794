"""One run from its first step to its last. This is the file to read first.

Every step can be begun again: what it makes has a name that was written down before, so a daemon
that comes up again finds it and goes on. A run that is cut short, by who cancels it or by a step
that fails, loses its machine, and what its program had committed is kept; one whose daemon stops
keeps everything, and is gone on with by the next. Above, the runs of this host; below, what they
use.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.agents.devshell import choose_devshell
from microvm_orchestrator.execs.execs import Wish as ExecWish
from microvm_orchestrator.lifecycle import bring, collect, guest, landing, place, resolving
from microvm_orchestrator.lifecycle.budget import Allowance, let_go, measured, stand
from microvm_orchestrator.lifecycle.callbacks import taking_callbacks
from microvm_orchestrator.lifecycle.egress import Leave, limits, spent_in
from microvm_orchestrator.lifecycle.following import follow
from microvm_orchestrator.lifecycle.program import Listener, Program, program_of
from microvm_orchestrator.lifecycle.silence import unless_silent
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.run import Result, Step
from microvm_orchestrator.model.values import moment

if TYPE_CHECKING:
    from microvm_orchestrator.artifacts import Artifacts
    from microvm_orchestrator.execs.execs import Execs
    from microvm_orchestrator.images.store import AnyImage
    from microvm_orchestrator.lifecycle.egress import WaysOut
    from microvm_orchestrator.lifecycle.merging import Merging
    from microvm_orchestrator.lifecycle.run import Run, Work
    from microvm_orchestrator.lifecycle.source import Source, Sources
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.machines import Machines

# For a run that is cut short: to fetch what it had committed.
_SALVAGE_S = 60.0
_MEASURE_S = 10.0
# What is kept of a command's output in the daemon's memory; its file has the rest.
_TAIL = 1 << 16
# What a program said, in its run's folder.
OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Usual:
    """What a run has where neither its task nor its repository says."""

    memory_mib: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Ground:
    """What runs stand on."""

    machines: Machines
    execs: Execs
    artifacts: Artifacts
    sources: Sources
    merging: Merging
    ways_out: WaysOut
    # An image by its name; None is the usual one.
    image: Callable[[str | None], Awaitable[AnyImage]]
    # One folder below it for each run.
    folder: Path
    usual: Usual

    def of(self, work: Work) -> Path:
        return self.folder / work.id

    def output(self, run_id: str) -> Path:
        return self.folder / run_id / OUTPUT


async def live(run: Run, ground: Ground) -> None:
    """See a run through. What becomes of it stands in its record.

    Raises: OrchestratorError when a step fails.
    """
    await anyio.Path(ground.of(run)).mkdir(parents=True, exist_ok=True)
    source = await ground.sources.open(run)
    if run.before(Step.REVIEWING):
        async with _machine(run, ground, source) as machine:
            if run.before(Step.PERFORMING):
                await _send(run, ground, source, machine)
            if run.before(Step.COLLECTING):
                await _perform(run, ground, source, machine)
            result = await _collect(run, ground, source, machine)
            await landing.begin(run, source, result)
    elif not run.spec.keep_machine:
        # Of a daemon that was killed before it had put it away.
        await _put_away(run, ground)
    merge = await landing.land(run, ground, source)
    await run.enter(Step.OVER, merge=merge)


@asynccontextmanager
async def _machine(
    run: Run, ground: Ground, source: Source | None
) -> AsyncGenerator[RunningMachine]:
    """Hold the machine of a run: a new one, or the one that an earlier daemon left running."""
    machine = await _find(run, ground) or await _start(run, ground, source)
    try:
        yield machine
    except errors.OrchestratorError:
        await _salvage(run, ground, source, machine)
        raise
    except anyio.get_cancelled_exc_class():
        # Otherwise the daemon stops, and the machine goes on.
        if run.scope.cancel_called:
            await _salvage(run, ground, source, machine)
        raise
    if run.spec.keep_machine:
        await collect.keep_console(run, ground.artifacts, ground.machines)
    else:
        await _put_away(run, ground)


async def _find(run: Run, ground: Ground) -> RunningMachine | None:
    """Raises: MachineLost when the machine in which its program ran does not run any more."""
    machine_id = run.record.machine_id
    if machine_id is None:
        return None
    try:
        found = await ground.machines.get(machine_id, run.by)
    except errors.NotFound:
        found = None
    if found is not None and found.state in {MachineState.RUNNING, MachineState.PAUSED}:
        return ground.machines.live(found)
    await _put_away(run, ground)
    if run.before(Step.PERFORMING):
        return None
    await _note_used(run, ground, None)
    state = "gone" if found is None else f"{found.state}: {found.reason}"
    raise errors.MachineLost(f"the machine in which its program ran is {state}")


async def _start(run: Run, ground: Ground, source: Source | None) -> RunningMachine:
    machine_id = new_id("m")
    await run.enter(Step.STARTING, machine_id=machine_id)
    await place.define(run, ground, source, machine_id)
    try:
        machine = await ground.machines.start(machine_id, run.by)
    except errors.OrchestratorError:
        await _put_away(run, ground)
        raise
    except anyio.get_cancelled_exc_class():
        if run.scope.cancel_called:
            await _put_away(run, ground)
        raise
    return ground.machines.live(machine)


async def _send(run: Run, ground: Ground, source: Source | None, machine: RunningMachine) -> None:
    """Lay out what the program works on, and what it brings along."""
    await run.enter(Step.SENDING)
    shell = await machine.reached()
    await guest.begin(shell)
    if source is not None:
        branch = f"task-{run.task.task_id[-8:]}"
        await ground.sources.send(source, machine, ground.of(run), branch)
        await resolving.offer(run, source, machine, ground.of(run))
    await bring.put_files(run, ground.artifacts, shell)
    for file in _program(run, ground, source, devshell=False).invocation.files:
        await shell.put(file.path, file.content, mode=file.mode, parents=True)


async def _perform(
    run: Run, ground: Ground, source: Source | None, machine: RunningMachine
) -> None:
    """Run the program to its end; one that was begun is never begun again."""
    await stand(run, ground.machines, machine)
    devshell = source is not None and await _has_devshell(run, source, machine)
    program = _program(run, ground, source, devshell=devshell)
    if run.before(Step.PERFORMING):
        await run.enter(Step.PERFORMING, exec_id=new_id("x"), began_at=moment(time.time()))
    wish = ExecWish(
        command=program.command,
        digest=hashlib.sha256(run.record.run_id.encode()).hexdigest(),
        timeout_s=program.command.timeout_s or ground.usual.timeout_s,
        output_cap=_TAIL,
        exec_id=run.record.exec_id,
        stdin=program.invocation.stdin,
    )
    listener = Listener(program.reader)
    allowance = Allowance(run, ground.machines, machine)
    leave = Leave(
        [*place.usual_of(source).egress, *run.spec.egress],
        run.spec.credentials,
        limits(run.record.budget),
        models=run.spec.kind == "agent",
    )
    ways_out = ground.ways_out.of(leave, machine, ground.of(run), allowance.on_exhausted)
    async with (
        unless_silent(machine, run.spec.silence_s) as silence,
        taking_callbacks(run, machine, ground.of(run), silence) as told_there,
        ways_out as way_out,
    ):
        command = replace(wish.command, env={**wish.command.env, **told_there})
        wish = replace(wish, command=command)
        job = await ground.execs.start(machine_id_of(run), wish, run.by)
        await job.started.wait()
        async with allowance.kept(way_out):
            await follow(job, ground.output(run.record.run_id), listener, run.say)
        usage = await measured(run, machine, way_out.usage())
    if job.failure is not None:
        raise job.failure
    told = job.exec
    if told.exit_code is None and told.signal is None:
        raise errors.MachineLost(f"what became of its program is not known: {told.reason}")
    result = listener.finish(told.exit_code, told.signal, timed_out=told.timed_out)
    await run.enter(Step.COLLECTING, result=result, usage=usage)


async def _collect(
    run: Run, ground: Ground, source: Source | None, machine: RunningMachine
) -> Result:
    try:
        if source is None:
            return run.record.result or Result(success=False)
        return await ground.sources.collect(run, source, machine, ground.of(run))
    finally:
        # Also of one whose commits may not enter.
        await collect.collect(run, ground.artifacts, machine, ground.of(run))


async def _salvage(
    run: Run, ground: Ground, source: Source | None, machine: RunningMachine
) -> None:
    """Keep what was committed until now, if the guest still gives it, and end the machine."""
    await _note_used(run, ground, machine)
    if not run.before(Step.PERFORMING) and run.before(Step.REVIEWING):
        with anyio.move_on_after(_SALVAGE_S, shield=True), suppress(errors.OrchestratorError):
            await let_go(run, ground.machines, machine)
            result = await _collect(run, ground, source, machine)
            result = result.model_copy(update={"success": False, "error": run.why or result.error})
            await run.learn("salvaged", result=result)
    await _put_away(run, ground)


async def _note_used(run: Run, ground: Ground, machine: RunningMachine | None) -> None:
    """Write down what a run has used whose program is cut short, as far as it is known."""
    if run.record.step is not Step.PERFORMING:
        return
    with anyio.move_on_after(_MEASURE_S, shield=True), suppress(errors.OrchestratorError):
        before = run.record.usage.model_dump(include={"wall_s", "cpu_s", "memory_peak_mib"})
        spent = await anyio.to_thread.run_sync(spent_in, ground.of(run))
        usage = spent.model_copy(update=before)
        if machine is not None:
            usage = await measured(run, machine, usage)
        await run.learn("used", usage=usage)


async def _put_away(run: Run, ground: Ground) -> None:
    """End the machine of a run, and leave nothing of it."""
    if run.record.machine_id is not None:
        await collect.keep_console(run, ground.artifacts, ground.machines)
        await place.put_away(ground.machines, run.record.machine_id)


def machine_id_of(run: Run) -> str:
    """Raises: MachineLost."""
    if run.record.machine_id is None:
        raise errors.MachineLost("it has no machine")
    return run.record.machine_id


def _program(run: Run, ground: Ground, source: Source | None, *, devshell: bool) -> Program:
    timeout_s = place.timeout_of(run, ground, source)
    return program_of(run, place.usual_of(source), timeout_s=timeout_s, devshell=devshell)


async def _has_devshell(run: Run, source: Source, machine: RunningMachine) -> bool:
    """Raises: DevshellMissing."""
    policy = run.spec.devshell or source.repo.defaults.devshell
    has_flake, has_nix = await guest.has_devshell(await machine.reached())
    return choose_devshell(policy, has_flake=has_flake, has_nix=has_nix)
