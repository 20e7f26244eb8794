"""The check of what was merged: a text that runs in a machine of its own, before a branch moves.

The machine has the merged commit and what a run's program finds beside it: the same image, the same
variables, the same hosts to reach. It has nothing of the run itself, so what a program has left
behind in its machine passes no check, and it is lent no key. Its name is written down first, and
it is put away on every exit. Above is the landing of a run; below, the guest and the machines.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator.agents.devshell import choose_devshell
from microvm_orchestrator.lifecycle import guest, place
from microvm_orchestrator.lifecycle.egress import Leave, limits
from microvm_orchestrator.lifecycle.program import plain_program
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.run import CheckOutcome

if TYPE_CHECKING:
    from microvm_orchestrator.egress.budget import Exhausted
    from microvm_orchestrator.git.names import Oid
    from microvm_orchestrator.lifecycle.live import Ground
    from microvm_orchestrator.lifecycle.program import Program
    from microvm_orchestrator.lifecycle.run import Work
    from microvm_orchestrator.lifecycle.source import Source
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.machine.shell import Exit, Shell
    from microvm_orchestrator.model.run import RunSpec

# Why a check fails is the last that it says.
_TAIL = 16 << 10
# The guest ends it when its time is up; one that does not is not waited for.
_LATE_S = 30.0


def text_of(work: Work, source: Source) -> str:
    """What is run; nothing where nothing is checked."""
    given = work.spec.check
    return (source.repo.defaults.check if given is None else given) or ""


async def check(work: Work, ground: Ground, source: Source, commit: Oid) -> CheckOutcome:
    """See whether a commit passes the check of a run.

    Raises: OrchestratorError when that cannot be seen: a machine that does not start or is lost.
    """
    machine_id = new_id("m")
    await work.learn("checking", check_machine_id=machine_id)
    merged = replace(source, base=commit)
    began = anyio.current_time()
    try:
        await place.define(work, ground, merged, machine_id)
        started = await ground.machines.start(machine_id, work.by)
        machine = ground.machines.live(started)
        shell = await machine.reached()
        await guest.begin(shell)
        await ground.sources.send(merged, machine, ground.of(work), "check")
        tail = Tail(_TAIL)
        ended = await _performed(work, ground, merged, machine, shell, tail)
    finally:
        await place.put_away(ground.machines, machine_id)
    return CheckOutcome(
        success=ended is not None and ended.code == 0 and not ended.timed_out,
        commit=commit,
        exit_code=None if ended is None else ended.code,
        signal=None if ended is None else ended.signal,
        timed_out=ended is None or ended.timed_out,
        output=tail.text(),
        wall_s=round(anyio.current_time() - began, 3),
    )


async def _performed(
    work: Work, ground: Ground, source: Source, machine: RunningMachine, shell: Shell, tail: Tail
) -> Exit | None:
    """Run the check to its end; None when it did not end."""
    timeout_s = place.timeout_of(work, ground, source)
    # No keys are lent to what is no agent, and no secrets: others have written in the branch, too.
    update = {
        "kind": "script",
        "script": text_of(work, source),
        "interpreter": ["/bin/sh"],
        "credentials": [],
    }
    spec = work.spec.model_copy(update=update)
    program = await _program(spec, work, source, shell, timeout_s)
    for file in program.invocation.files:
        await shell.put(file.path, file.content, mode=file.mode, parents=True)
    hosts = [*source.repo.defaults.egress, *work.spec.egress]
    leave = Leave(hosts, spec.credentials, limits(spec.budget), models=False)
    async with ground.ways_out.of(leave, machine, ground.of(work), _unspent):
        with anyio.move_on_after(timeout_s + _LATE_S):
            async with shell.stream(program.command, stdin=False) as process:
                async for piece in process:
                    tail.add(piece.data)
                return await process.wait()
    return None


async def _program(
    spec: RunSpec, work: Work, source: Source, shell: Shell, timeout_s: float
) -> Program:
    policy = spec.devshell or source.repo.defaults.devshell
    has_flake, has_nix = await guest.has_devshell(shell)
    devshell = choose_devshell(policy, has_flake=has_flake, has_nix=has_nix)
    return plain_program(spec, work.variables, timeout_s=timeout_s, devshell=devshell)


async def _unspent(_limit: Exhausted) -> None:
    """Nothing is bought without a key."""


class Tail:
    """The end of what somebody says, however much that is."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept = bytearray()

    def add(self, data: bytes) -> None:
        self._kept += data[-self._most :]
        del self._kept[: -self._most]

    def text(self) -> str:
        """Give it as text that moves no terminal's cursor."""
        said = self._kept.decode(errors="replace")
        return "".join(char for char in said if char.isprintable() or char in "\n\t")
