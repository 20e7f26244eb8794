"""What an agent asks for itself, from its own machine.

Who asks is known by the token that the agent was given, which is good from there only. Above is the
profile `agent`; below, the agents of this host.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from microvm_orchestrator import errors
from microvm_orchestrator.conversations.home import acting
from microvm_orchestrator.conversations.spawn import begin
from microvm_orchestrator.conversations.token import agent_named
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.supervision import Deed, Observation, Sight
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.service.messages import awaited, came_to
from microvm_orchestrator.service.roles import find_role

if TYPE_CHECKING:
    from microvm_orchestrator.model.agent import Agent, Message
    from microvm_orchestrator.model.agent_claims import Works
    from microvm_orchestrator.model.values import Moment
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

# As many answers are shown to an agent at once.
_INBOX_MOST = 50
_SAID_LATER = "what you said is heard once your turn is over: end it, or say it with wait_s 0"


async def agent_of(service: Service, caller: Caller) -> Agent:
    """Find the agent that asks. Raises: Denied for who is none that lives."""
    agent_id = agent_named(caller.principal.name) if caller.principal.token_id else None
    if agent_id is not None:
        with suppress(errors.NotFound):
            found = await service.host.agents.get(agent_id, SYSTEM)
            if not found.over:
                return found
    raise errors.Denied("these tools are for agents, in their own machines")


async def say_as(  # who asks, as whom, and all of what it says
    service: Service, caller: Caller, agent: Agent, to: str, text: str, *, tell_back: bool
) -> Message:
    """Say something as an agent. Raises: Denied for who is no relative of it."""
    agents = service.host.agents
    other = next((each for _, each in agents.kin(agent) if each.name == to), None)
    if other is None:
        await service.store.note(acting(agent, caller.via), agent.agent_id, errors.Denied.code)
        raise errors.Denied(
            f"{to} is neither your parent nor a child or peer of yours",
            hint="`others` shows whom you may talk to",
        )
    return await agents.send(
        other.agent_id, text, acting(agent, caller.via), sender=agent, tell_back=tell_back
    )


async def reply_as(service: Service, caller: Caller, agent: Agent, text: str) -> Message:
    """Answer what an agent hears now. Raises: StateForbids if it has answered."""
    return await service.host.agents.reply_as(agent, text, acting(agent, caller.via))


async def inbox_of(
    service: Service, caller: Caller, agent: Agent, since: Moment | None
) -> list[Message]:
    """The last answers that came to what an agent said, oldest first."""
    answers = await came_to(service, acting(agent, caller.via), agent.agent_id, since)
    return answers[-_INBOX_MOST:]


async def spawn_as(
    service: Service,
    caller: Caller,
    agent: Agent,
    name: str,
    prompt: str,
    *,
    role: str | None,
    system_prompt: str | None,
    works: Works | None = None,
    ephemeral: bool = False,
) -> Message:
    """Spawn a child of an agent, like it but for who it is, and tell it something."""
    agents, by = service.host.agents, acting(agent, caller.via)
    found = None if role is None else await find_role(service, role)
    try:
        child = await agents.care.child_of(
            agent, name, found, ephemeral=ephemeral, system_prompt=system_prompt
        )
        _, told = await begin(agents, replace(child, works=works), by, prompt, sender=agent)
    except (errors.TooLarge, errors.StateForbids) as error:
        await service.store.note(by, agent.agent_id, error.code)
        raise
    return told


async def wait_as(
    service: Service, caller: Caller, agent: Agent, message_id: str, timeout_s: float
) -> Message:
    """Wait for the answer to what an agent said. Raises: NotFound for what others said."""
    by = acting(agent, caller.via)
    message = await service.host.agents.message(message_id, by)
    if message.sender != agent.agent_id:
        raise errors.NotFound(f"you said nothing that is called {message_id[:100]}")
    if message.settled or not timeout_s:
        return message
    agents = service.host.agents
    ring = agents.care.waits.find_ring(agent.agent_id, message.agent_id)
    if ring:
        await refuse_wait(service, agent, ring, _SAID_LATER)
    with agents.care.waits.waiting(agent.agent_id, message.agent_id):
        return await awaited(service, caller, by, message_id, timeout_s)


async def refuse_wait(service: Service, agent: Agent, ring: list[str], hint: str) -> NoReturn:
    """Tell an agent that whom it would wait for waits for it. Raises: StateForbids."""
    agents = service.host.agents
    known = {each.agent_id: each.name for each in agents.living(SYSTEM)}
    # Between two of them there may be a coordination.
    names = [known[each] for each in ring if each in known]
    chain = ", who waits for ".join([*names[:-1], "you"])
    what = f"it would have waited for {', who waits for '.join([*names[:-1], 'it'])}"
    told = Observation(
        at=moment(await service.store.now()),
        sight=Sight.DEADLOCK,
        what=what[:300],
        deed=Deed.REFUSED,
    )
    await agents.care.observe(agent, told)
    raise errors.StateForbids(
        f"you would wait for {chain}, and neither of you would ever go on",
        hint=hint,
    )
