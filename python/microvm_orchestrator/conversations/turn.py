"""One turn of an agent: it hears one message, does what it does, and answers.

A turn is one command in the agent's machine, which has an id that was written down before. So a
daemon that comes up in the middle of it follows it to its end, and none is begun twice. Between
turns no program runs: what the agent remembers is the session on its disk, which the next turn
goes on with. Above is the life of an agent; below, the drivers and the commands.
"""

from __future__ import annotations

import hashlib
import uuid
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.agents.drivers import find_driver
from microvm_orchestrator.agents.drivers.base import AgentTask, Endpoint, KeyKind
from microvm_orchestrator.conversations.fit import OWN_SERVER, system_prompt
from microvm_orchestrator.conversations.home import acting, folder_of
from microvm_orchestrator.conversations.token import token_of
from microvm_orchestrator.egress.budget import Budget as Limits
from microvm_orchestrator.execs.execs import Wish
from microvm_orchestrator.lifecycle.egress import Leave, spent_in
from microvm_orchestrator.lifecycle.following import follow
from microvm_orchestrator.lifecycle.guest import HOME
from microvm_orchestrator.lifecycle.port import held_open
from microvm_orchestrator.lifecycle.program import (
    PLACEHOLDER,
    PROXY,
    Listener,
    ways_out,
    ways_to_secrets,
)
from microvm_orchestrator.machine.shell import Command

if TYPE_CHECKING:
    from pydantic import JsonValue

    from microvm_orchestrator.conversations.ground import AgentGround
    from microvm_orchestrator.egress.budget import Exhausted
    from microvm_orchestrator.execs.job import Job
    from microvm_orchestrator.lifecycle.egress import WayOut
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.model.agent import Agent, Message
    from microvm_orchestrator.model.run import Result, Usage

# A port of its guest, behind which is the daemon, and the one path that is served there.
DOOR_PORT = 8486
DOOR_PATH = "/mcp/profiles/agent"
# What is kept of a turn's output in the daemon's memory; its file has the rest.
_TAIL = 1 << 16
_SYNC_S = 60.0
# Those that there are, its account knows, with what others take of them at the same time.
_NO_LIMITS = Limits()


class Hearer(Protocol):
    """Who is told of a turn while it lasts."""

    def begun(self) -> None:
        """Hear that its program is being started."""
        ...

    def says(self, said: str) -> None:
        """Hear what the agent said last."""
        ...

    def goes_by(self, way_out: WayOut) -> None:
        """Hear by which way its requests go out."""
        ...


async def take_turn(
    agent: Agent,
    message: Message,
    machine: RunningMachine,
    ground: AgentGround,
    hearer: Hearer,
) -> Result:
    """Have an agent hear a message to the end, or go on with a turn that was begun.

    Raises: MachineLost when nobody knows what became of it; what its driver and its machine raise.
    """
    task = task_of(agent, message, await token_of(agent, ground))
    driver = find_driver(agent.character.driver)
    # Always the same: programs look for a session by the folder that it was begun in.
    where = folder_of(agent)
    invocation = driver.prepare(task, Endpoint(PROXY, PLACEHOLDER, KeyKind.API_KEY), HOME, where)
    shell = await machine.reached()
    for file in invocation.files:
        await shell.put(file.path, file.content, mode=file.mode, parents=True)
    secrets = ways_to_secrets(agent.home.credentials)
    command = Command(
        argv=invocation.argv,
        env={"HOME": HOME, **ways_out(), **invocation.env, **secrets},
        cwd=where,
        timeout_s=ground.timeout_s,
    )
    wish = Wish(
        command=command,
        digest=hashlib.sha256(message.message_id.encode()).hexdigest(),
        timeout_s=ground.timeout_s,
        output_cap=_TAIL,
        exec_id=message.exec_id,
        stdin=invocation.stdin,
    )
    folder = ground.of(agent.agent_id)
    leave = Leave(agent.home.egress, agent.home.credentials, _NO_LIMITS)
    listener = Listener(driver.reader(task))

    async def hear() -> Job:
        job = await ground.execs.start(agent.machine_id, wish, acting(agent))
        hearer.begun()
        await job.started.wait()
        await follow(job, ground.output(message.message_id), listener, hearer.says)
        return job

    way_out_of = ground.ways_out.of(
        leave,
        machine,
        folder,
        _refused,
        holds=False,
        shared=partial(ground.records.accounts.of_models, agent.agent_id),
    )
    door = partial(ground.door.serve, agent.agent_id)
    async with held_open(machine, DOOR_PORT, door), way_out_of as way_out:
        hearer.goes_by(way_out)
        job = await hear()
        if isinstance(job.failure, errors.ExecNotBegun):
            # The daemon ended, or the connection broke, before the guest had it.
            job = await hear()
        await _write_down(machine)
    if job.failure is not None:
        raise job.failure
    told = job.exec
    if told.exit_code is None and told.signal is None:
        raise errors.MachineLost(f"what became of its turn is not known: {told.reason}")
    return listener.finish(told.exit_code, told.signal, timed_out=told.timed_out)


async def _write_down(machine: RunningMachine) -> None:
    """Have the guest's disk hold what the agent remembers of the turn before it is answered."""
    with suppress(errors.OrchestratorError):  # whoever has no machine any more meets that next
        await (await machine.reached()).exec(Command(["sync"], timeout_s=_SYNC_S))


async def _refused(limit: Exhausted) -> None:
    # Its program is told, and the turn fails with that.
    del limit


def task_of(agent: Agent, message: Message, token: str) -> AgentTask:
    """Say what an agent's program shall do to have it hear a message."""
    character = agent.character
    # A session of which nobody knows whether it began is not gone on with.
    fresh = str(uuid.uuid5(uuid.NAMESPACE_OID, message.message_id))
    prompt = message.text
    if message.sender_agent is not None:
        prompt = f"Agent {message.sender_agent} says:\n\n{prompt}"
    return AgentTask(
        prompt=prompt,
        model=character.model,
        system_prompt=system_prompt(character, agent.role_prompt),
        max_turns=character.max_turns,
        mcp_servers={**character.mcp_servers, OWN_SERVER: _own_server(token)},
        session_id=agent.session_id or fresh,
        resume=agent.session_id is not None,
    )


def _own_server(token: str) -> JsonValue:
    """How an agent reaches whoever it belongs with: through its own machine, as itself."""
    return {
        "type": "http",
        "url": f"http://127.0.0.1:{DOOR_PORT}{DOOR_PATH}",
        "headers": {"Authorization": f"Bearer {token}"},
    }


async def used_by(agent: Agent, ground: AgentGround) -> Usage:
    """Tell what an agent has used of models, though its way out is shut."""
    return await anyio.to_thread.run_sync(spent_in, ground.of(agent.agent_id))
