"""The commands in this host's machines: begun at most once, followed to the end, found again.

The guest keeps each as a job, so none is lost with a connection or with the daemon. Here each has a
record in the store from before it is sent; a fresh daemon takes up those that run, and reads once
more what the guest still holds of those that ended. What is remembered is bounded: so many commands
of a machine, so many bytes of output in all. Above is the service; below, the machines.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import anyio
import anyio.abc
from pydantic import JsonValue

from microvm_orchestrator import errors, log
from microvm_orchestrator.execs.follow import Follower, finds_again
from microvm_orchestrator.execs.job import Job
from microvm_orchestrator.machine.base import Machine as RunningMachine
from microvm_orchestrator.machine.shell import Command, Exit
from microvm_orchestrator.machines import Machines
from microvm_orchestrator.model.exec import EXEC, Exec, ExecState, KeptExec
from microvm_orchestrator.model.machine import Machine, MachineState
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record

_log = log.get(__name__)

# A guest keeps 256 jobs, and a connection into it carries 128 streams.
RUNNING_MOST = 64
ENDED_MOST = 100
# Of output, for all commands together.
OUTPUT_MOST = 64 << 20
# What is known of an end is worth writing down even while the daemon stops.
_LAST_WORD_S = 2.0
# Between asking a command to end and ending it.
_END_GRACE_S = 3.0
# For a list: what a command is, not all that it was given.
_SHOWN_CHARS = 1000
_SHOWN_WORDS = 64


@dataclass(frozen=True, slots=True)
class Wish:
    """A command as it is asked for."""

    command: Command
    # Of everything that was asked for, so that the same request can come again.
    digest: str
    timeout_s: float
    output_cap: int
    exec_id: str | None = None
    stdin: bytes = b""
    # Whether more input follows.
    takes_input: bool = False


@dataclass(slots=True)
class _OfMachine:
    """The commands of one machine, oldest first."""

    running: dict[str, Job] = field(default_factory=dict[str, Job])
    ended: dict[str, Job] = field(default_factory=dict[str, Job])


class Execs:
    """The commands of one daemon; lives as long as `running`."""

    def __init__(self, store: Store, machines: Machines) -> None:
        self._store = store
        self._machines = machines
        self._jobs: dict[str, Job] = {}
        self._of: dict[str, _OfMachine] = {}
        self._tasks: anyio.abc.TaskGroup | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Take up what runs, and follow it until the block ends. Commands go on after it."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            await self._reconcile(tasks)
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    # What is known

    def find(self, exec_id: str, by: Actor) -> Job:
        """Raises: NotFound, also for what `by` cannot see."""
        job = self._jobs.get(exec_id)
        if job is None or not by.sees_of(job.exec.owner):
            raise errors.NotFound(f"no command {exec_id}", hint="exec_list shows the commands")
        return job

    async def awake(self, reference: str, by: Actor) -> tuple[Machine, RunningMachine]:
        """Find a machine whose guest can be asked something. Raises: NotFound, StateForbids."""
        machine = await self._machines.get(reference, by)
        if machine.state is MachineState.PAUSED:
            raise errors.StateForbids(
                f"machine {machine.machine_id} is paused", hint="machine_resume lets it go on"
            )
        return machine, self._machines.live(machine)

    # Verbs

    async def start(self, reference: str, wish: Wish, by: Actor) -> Job:
        """Begin a command, once for each id; it goes on whoever leaves.

        Raises: NotFound; StateForbids; KeyReused or AlreadyExists for an id that was used for
            something else; Unavailable when too many run.
        """
        machine = await self._machines.get(reference, by)
        exec_id = wish.exec_id or new_id("x")
        if exec_id in self._jobs:
            return self._same(exec_id, machine, wish, by)
        machine, running = await self.awake(reference, by)
        if exec_id in self._jobs:
            return self._same(exec_id, machine, wish, by)
        tasks = self._tasks
        if tasks is None:
            raise errors.Stopping("the daemon takes on no more commands")
        group = self._of.setdefault(machine.machine_id, _OfMachine())
        if len(group.running) >= RUNNING_MOST:
            raise errors.Unavailable(
                f"{RUNNING_MOST} commands run in machine {machine.machine_id} already"
            )
        job = Job(_kept(exec_id, machine, wish, by, _guest_of(running)), 0, wish.stdin)
        self._jobs[exec_id] = group.running[exec_id] = job
        try:
            await self._write_down(job, by)
            await self._make_room(machine.machine_id, running)
        except BaseException:
            self._drop(job)
            raise
        tasks.start_soon(self._perform, job, Follower(job, running, self._heard), wish.command)
        return job

    def _same(self, exec_id: str, machine: Machine, wish: Wish, by: Actor) -> Job:
        job = self._jobs[exec_id]
        if not by.sees_of(job.exec.owner):
            raise errors.AlreadyExists(f"a command {exec_id} already exists")
        if job.digest != wish.digest or job.exec.machine_id != machine.machine_id:
            raise errors.KeyReused(f"the id {exec_id} began another command")
        job.want_input(wish.stdin)
        return job

    def end_soon(self, job: Job) -> None:
        """End a command whose client is gone."""
        if self._tasks is not None:
            self._tasks.start_soon(self._end, job)

    async def _end(self, job: Job) -> None:
        first = signal.SIGHUP if job.exec.terminal else signal.SIGTERM
        for number in (first, signal.SIGKILL):
            with contextlib.suppress(errors.OrchestratorError):
                await (await job.running()).signal(number)
            with anyio.move_on_after(_END_GRACE_S):
                await job.ended.wait()
                return

    async def note(self, job: Job, by: Actor) -> None:
        """Write down that somebody did something to a command."""
        await self._store.note(by, job.exec.exec_id, "ok")

    async def forget_machine(self, machine_id: str) -> None:
        """Forget the commands of a machine that is gone."""
        group = self._of.get(machine_id, _OfMachine())
        for job in [*group.running.values(), *group.ended.values()]:
            await self._erase(job)
        self._of.pop(machine_id, None)

    # Following

    async def _perform(self, job: Job, follower: Follower, command: Command) -> None:
        try:
            ended = await follower.run(command)
        except errors.UnknownOutcome as error:
            await self._finish(job, ExecState.LOST, reason=error.message)
        except errors.OrchestratorError as error:
            # It never ran: nothing is kept of it but the answer to who asked.
            job.failure = error
            await self._erase(job)
        else:
            await self._finish(job, ExecState.EXITED, ended)
        await self._tidy(follower.machine)

    async def _take_up(self, job: Job, follower: Follower) -> None:
        try:
            ended = await follower.resume()
        except errors.ExecNotBegun as error:
            job.failure = error
            await self._erase(job)
        except errors.OrchestratorError as error:
            await self._finish(job, ExecState.LOST, reason=error.message)
        else:
            await self._finish(job, ExecState.EXITED, ended)
        await self._tidy(follower.machine)

    async def _read_again(self, job: Job, follower: Follower) -> None:
        """Fetch what the guest still holds of a command that had ended."""
        with contextlib.suppress(errors.OrchestratorError):
            await follower.resume()
        job.end()

    async def _finish(
        self, job: Job, state: ExecState, ended: Exit | None = None, reason: str = ""
    ) -> None:
        told: dict[str, JsonValue] = {"reason": reason} if reason else {}
        if ended is not None:
            told |= {
                "exit_code": ended.code,
                "signal": ended.signal,
                "timed_out": ended.timed_out,
            }
        with anyio.move_on_after(_LAST_WORD_S, shield=True):
            job.takes_input = False
            try:
                update = {"state": state, "ended_at": moment(await self._store.now()), **told}
                job.exec = job.exec.model_copy(update=update)
                await self._save(job, SYSTEM, Tell(state, _body(job, told), audited=False))
            except errors.OrchestratorError as error:
                # The next start finds out for itself.
                _log.error("exec_end_unwritten", exec=job.exec.exec_id, reason=error.message)
        group = self._of.get(job.exec.machine_id)
        if group is not None:
            group.running.pop(job.exec.exec_id, None)
            group.ended[job.exec.exec_id] = job
        job.end()

    # The records

    async def _write_down(self, job: Job, by: Actor) -> None:
        job.exec = job.exec.model_copy(update={"started_at": moment(await self._store.now())})
        tell = Tell("started", _body(job, {"argv": list(job.exec.argv)}), target=job.exec.exec_id)
        await self._save(job, by, tell)

    async def _save(self, job: Job, by: Actor, tell: Tell) -> None:
        record = Record(EXEC, job.exec.exec_id, job.kept.model_dump(mode="json"))
        saved = await self._store.save(record, by, expect=job.version, tell=tell)
        job.version = saved.version

    async def _erase(self, job: Job) -> None:
        self._drop(job)
        job.end()
        with contextlib.suppress(errors.Unavailable):
            await self._store.erase(EXEC, job.exec.exec_id, SYSTEM)

    def _drop(self, job: Job) -> None:
        self._jobs.pop(job.exec.exec_id, None)
        group = self._of.get(job.exec.machine_id)
        if group is not None:
            group.running.pop(job.exec.exec_id, None)
            group.ended.pop(job.exec.exec_id, None)
        job.end()

    # Bounds

    def _heard(self) -> None:
        """Keep what is remembered of output bounded, the oldest of what has ended first."""
        excess = sum(job.log.cost for job in self._jobs.values()) - OUTPUT_MOST
        if excess <= 0:
            return
        ended = [job for job in self._jobs.values() if job.over]
        others = [job for job in self._jobs.values() if not job.over and not job.tapped]
        others.sort(key=lambda job: job.log.cost, reverse=True)
        for job in [*ended, *others]:
            excess -= job.log.cost
            job.log.clear()
            if excess <= 0:
                return

    async def _make_room(self, machine_id: str, running: RunningMachine) -> None:
        """Forget the oldest that ended, here and in the guest."""
        ended = self._of[machine_id].ended
        for exec_id, job in list(ended.items())[: max(0, len(ended) - ENDED_MOST)]:
            await self._erase(job)
            await _forget(running, exec_id)

    async def _tidy(self, running: RunningMachine) -> None:
        group = self._of.get(running.spec.machine_id)
        if group is not None and len(group.ended) > ENDED_MOST:
            await self._make_room(running.spec.machine_id, running)

    # The start of a daemon

    async def _reconcile(self, tasks: anyio.abc.TaskGroup) -> None:
        machines = {m.machine_id: m for m in await self._machines.visible(SYSTEM)}
        for record in await every_record(self._store, EXEC, SYSTEM):
            job = Job(KeptExec.model_validate(record.body), record.version)
            job.started.set()
            machine_id = job.exec.machine_id
            if machine_id not in machines:
                await self._erase(job)
                continue
            group = self._of.setdefault(machine_id, _OfMachine())
            self._jobs[job.exec.exec_id] = job
            (group.ended if job.exec.over else group.running)[job.exec.exec_id] = job
        for machine_id, group in self._of.items():
            if self._machines.runs(machines[machine_id]):
                running = self._machines.live(machines[machine_id])
                tasks.start_soon(self._take_up_all, running, group)
                continue
            for job in list(group.running.values()):
                await self._finish(job, ExecState.LOST, reason=_why_lost(machines[machine_id]))
            for job in group.ended.values():
                job.end()

    async def _take_up_all(self, running: RunningMachine, group: _OfMachine) -> None:
        """Find again what runs in a machine that was adopted, and what it still holds."""
        for job in [*group.running.values(), *group.ended.values()]:
            follower = Follower(job, running, self._heard)
            work = self._read_again if job.exec.over else self._take_up
            if self._tasks is not None:
                self._tasks.start_soon(work, job, follower)
        with contextlib.suppress(errors.OrchestratorError):
            shell = await running.reached()
            for held in await shell.jobs():
                if not held.running and held.exec_id not in self._jobs:
                    await shell.forget(held.exec_id)


async def _forget(running: RunningMachine, exec_id: str) -> None:
    # A guest that is not reached now may keep it: there is room for more than we remember.
    with contextlib.suppress(errors.OrchestratorError):
        await running.shell.forget(exec_id)


def _guest_of(running: RunningMachine) -> tuple[str, str] | None:
    try:
        guest = running.shell.guest
    except errors.OrchestratorError:
        return None  # whoever sends it the command waits for it
    # One that forgets a command with its connection cannot tell whether it began it.
    return guest.who if finds_again(guest) else None


def _kept(
    exec_id: str, machine: Machine, wish: Wish, by: Actor, guest: tuple[str, str] | None
) -> KeptExec:
    words = [
        word if isinstance(word, str) else word.decode(errors="replace")
        for word in wish.command.argv[:_SHOWN_WORDS]
    ]
    told = Exec(
        exec_id=exec_id,
        machine_id=machine.machine_id,
        owner=by.name,
        argv=[word[:_SHOWN_CHARS] for word in words],
        user=wish.command.user,
        cwd=wish.command.cwd,
        terminal=wish.command.terminal is not None,
        timeout_s=wish.timeout_s,
        state=ExecState.RUNNING,
        started_at=moment(0.0),
    )
    return KeptExec(
        exec=told,
        digest=wish.digest,
        output_cap=wish.output_cap,
        takes_input=wish.takes_input,
        guest=guest,
    )


def _body(job: Job, more: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {"machine_id": job.exec.machine_id, **more}


def _why_lost(machine: Machine) -> str:
    return f"its machine is {machine.state}" + (f": {machine.reason}" if machine.reason else "")
