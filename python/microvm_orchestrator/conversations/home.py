"""The machine in which an agent lives: made once, started whenever it is needed, ended with it.

What the agent remembers lies on its disk. So a machine that crashed, was stopped or went down with
its host is started again, and the agent goes on with its conversation. Above is the life of an
agent; below, the machines.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.images.store import fixed_by
from microvm_orchestrator.lifecycle import guest
from microvm_orchestrator.lifecycle.place import put_away
from microvm_orchestrator.machine.base import Accel
from microvm_orchestrator.machines import Wish
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.model.records import SYSTEM, Actor

if TYPE_CHECKING:
    from microvm_orchestrator.conversations.ground import AgentGround
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.model.agent import Agent
    from microvm_orchestrator.model.machine import Machine

_log = log.get(__name__)

# For a guest to write what it has in memory to its disk.
_STOP_S = 10.0
# To be rid of a machine that nobody needs.
_HALT_S = 30.0


def acting(agent: Agent, via: str = "agent") -> Actor:
    """Who does what an agent needs of its host: it belongs to whoever the agent belongs to."""
    return Actor(agent.owner, Role.OPERATOR, via, f"agent {agent.name}")


def folder_of(agent: Agent) -> str:
    """Where an agent works in its machine."""
    return guest.WORKSPACE if agent.work is None else guest.REPO


async def open_home(agent: Agent, ground: AgentGround) -> RunningMachine:
    """Have an agent's machine run; it is made if it is not there.

    Raises: what images and machines raise.
    """
    by = acting(agent)
    try:
        machine = await ground.machines.get(agent.machine_id, by)
    except errors.NotFound:
        machine = await _make(agent, ground)
    if machine.state is MachineState.PAUSED:
        await ground.machines.resume(machine.machine_id, by)
    elif not ground.machines.runs(machine):
        await ground.machines.start(machine.machine_id, by)
    running = ground.machines.live(await ground.machines.get(machine.machine_id, by))
    await guest.begin(await running.reached())
    return running


async def _make(agent: Agent, ground: AgentGround) -> Machine:
    by = acting(agent)
    if agent.snapshot_id is not None:
        return await ground.snapshots.branch(agent.snapshot_id, by, machine_id=agent.machine_id)
    async with _history(agent, ground) as history:
        wish = await _wish(agent, ground, history)
        return await ground.machines.define(wish, by, machine_id=agent.machine_id)


@asynccontextmanager
async def _history(agent: Agent, ground: AgentGround) -> AsyncGenerator[str | None]:
    """Name the disk with most of the repository that it works on, where there is one."""
    work, sources = agent.work, ground.runs.sources
    if work is None:
        yield None
        return
    source = await sources.known(work.repo_id, acting(agent), work.base, work.into or "")
    async with sources.history(source) as name:
        yield name


async def _wish(agent: Agent, ground: AgentGround, history: str | None) -> Wish:
    home = agent.home
    image = await ground.image(home.image)
    own = fixed_by(image)
    return Wish(
        image=image.digest,
        memory_mib=home.memory_mib or own.memory_mib or ground.memory_mib,
        vcpus=home.vcpus or own.vcpus or 1,
        accel=Accel.AUTO,
        disk_mib=home.disk_mib,
        history=history,
    )


async def forget_origin(agent: Agent, ground: AgentGround) -> None:
    """Remove what an agent's machine was started from: it was saved for that alone."""
    if agent.snapshot_id is not None:
        with anyio.CancelScope(shield=True), suppress(errors.NotFound, errors.Unavailable):
            await ground.snapshots.forget(agent.snapshot_id, SYSTEM)


async def find_home(agent: Agent, ground: AgentGround) -> RunningMachine | None:
    """The machine of an agent, if it runs."""
    try:
        machine = await ground.machines.get(agent.machine_id, acting(agent))
    except errors.NotFound:
        return None
    return ground.machines.live(machine) if ground.machines.runs(machine) else None


async def close_home(agent: Agent, ground: AgentGround) -> None:
    """Stop an agent's machine; what is on its disk is kept. Raises: MachineFailed."""
    by = acting(agent)
    try:
        machine = await ground.machines.get(agent.machine_id, by)
    except errors.NotFound:
        return
    if machine.state is MachineState.PAUSED:
        # It has to go on to write down what it has.
        await ground.machines.resume(machine.machine_id, by)
    if ground.machines.runs(machine):
        await ground.machines.stop(machine.machine_id, by, grace_s=_STOP_S)


async def halt_home(agent: Agent, ground: AgentGround) -> None:
    """Have the machine of an agent that never came up run no more, as after a power cut.

    Its disk and its console are kept for who wants to know why, until the agent is ended.
    """
    with anyio.move_on_after(_HALT_S) as patience:
        try:
            with suppress(errors.NotFound, errors.StateForbids):
                await ground.machines.kill(agent.machine_id, SYSTEM)
        except errors.OrchestratorError as error:
            _log.error("agent_machine_left", agent=agent.agent_id, reason=error.message)
    if patience.cancelled_caught:
        _log.error("agent_machine_left", agent=agent.agent_id, reason=f"not in {_HALT_S:g} s")


async def remove_home(agent: Agent, ground: AgentGround) -> None:
    """End an agent's machine, and leave nothing of it."""
    await put_away(ground.machines, agent.machine_id)
    await ground.forget(agent.machine_id)
