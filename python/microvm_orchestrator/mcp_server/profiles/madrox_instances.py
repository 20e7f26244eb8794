"""Instances of the profile `madrox`, translated onto agents: spawned, looked at and ended.

An instance is an agent that the caller may see, whoever spawned it. Above is the profile; below,
the calls of agents, which check who asks and write down what they did.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.lifecycle.guest import WORKSPACE
from microvm_orchestrator.mcp_server.profiles import madrox_words as words
from microvm_orchestrator.model.agent import Agent, AgentState, Message
from microvm_orchestrator.model.values import moment, rfc3339
from microvm_orchestrator.service.agent_health import metrics_of
from microvm_orchestrator.service.agents import SpawnAgent, spawned
from microvm_orchestrator.service.roles import find_role
from microvm_orchestrator.service.service import actor, parse
from microvm_orchestrator.together import together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from microvm_orchestrator.mcp_server.profiles.madrox_words import Environment
    from microvm_orchestrator.model.agent_budget import Taken
    from microvm_orchestrator.model.operation import Operation
    from microvm_orchestrator.service.agents import ListOfAgents
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.messages import Interrupted
    from microvm_orchestrator.service.service import Service

Told = dict[str, Any]

# Of several names that are wished for at once, one is free soon.
_NAMES_TRIED = 100
# A turn is let end before its agent is suspended.
_SUSPEND_S = 60.0


class Instances:
    """The instances of one daemon, as each caller sees them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # Between looking how many there are and spawning one more.
        self._spawning = anyio.Lock()

    # Spawned

    async def claude(self, caller: Caller, here: Environment, asked: words.SpawnClaude) -> Told:
        told = await self._spawn(caller, here, asked, "claude", ready=asked.wait_for_ready)
        kind = f"Claude instance '{asked.name}' with role '{told['role']}'"
        return {**told, "message": _spawned(told, kind)}

    async def codex(self, caller: Caller, here: Environment, asked: words.SpawnCodex) -> Told:
        told = await self._spawn(caller, here, asked, "codex", ready=True)
        return {**told, "message": _spawned(told, f"Codex instance '{asked.name}'")}

    async def several(self, caller: Caller, here: Environment, asked: words.SpawnMany) -> Told:
        """Spawn each that can be, all at once; what is wrong with one is told of it alone."""

        async def one(given: Told) -> Told:
            try:
                kind = given.get("instance_type", given.get("type", "claude"))
                rest = {k: v for k, v in given.items() if k not in {"instance_type", "type"}}
                if kind == "codex":
                    return await self.codex(caller, here, parse(words.SpawnCodex, rest))
                if kind != "claude":
                    raise errors.InvalidInput(f"instance_type is claude or codex, not {kind}"[:200])
                return await self.claude(caller, here, parse(words.SpawnClaude, rest))
            except errors.OrchestratorError as error:
                return {"success": False, "error": words.why(error)}

        told = await together([partial(one, each) for each in asked.instances], at_once=8)
        return {
            "spawned": [each for each in told if each["success"]],
            # One that came to be and failed then is known by its id.
            "errors": [
                {"config": given, **{k: each[k] for k in ("instance_id", "error") if k in each}}
                for given, each in zip(asked.instances, told, strict=True)
                if not each["success"]
            ],
        }

    async def _role(self, word: str) -> tuple[str, str | None]:
        """Find a role; one that is not known is a general one there, which is said here."""
        try:
            return (await find_role(self._service, word)).name, None
        except (errors.NotFound, errors.InvalidInput) as error:
            general = (await find_role(self._service, "general")).name
            return general, f"{words.why(error)}; it is {general}"

    async def _spawn(
        self,
        caller: Caller,
        here: Environment,
        asked: words.Spawn,
        driver: str,
        *,
        ready: bool,
    ) -> Told:
        role, warning = await self._role(asked.role)
        given = {"driver": driver, "role": role, **_asked_for(here, asked)}
        async with self._spawning:
            await self.refuse_more(caller, here, given)
            agent = await self._named(caller, asked.name, given)
        message = None
        if asked.initial_prompt is not None:
            sent = {"agent": agent.agent_id, "text": asked.initial_prompt, "wait_s": 0.0}
            message = cast("Message", await self._service.invoke(caller, "agent_send", sent))
        told: Told = {
            "success": True,
            "instance_id": agent.agent_id,
            "status": "spawned",
            "name": asked.name,
            "instance_type": agent.character.driver,
            "model": agent.character.model,
            "role": role,
            **({"warning": warning} if warning else {}),
        }
        if ready or asked.wait_for_response:
            try:
                await self._service.host.agents.up(agent.agent_id)
            except errors.OrchestratorError as error:
                failed = {"success": False, "status": "failed", "error_message": words.why(error)}
                return {**told, **failed, "error": words.why(error)}
        if message is not None and asked.wait_for_response:
            return {**told, **await self._first_answer(caller, message, asked.timeout_seconds)}
        return told

    async def _first_answer(self, caller: Caller, message: Message, timeout_s: float) -> Told:
        wait = {"message_id": message.message_id, "timeout_s": float(timeout_s)}
        heard = cast("Message", await self._service.invoke(caller, "agent_wait", wait))
        if words.answered(heard):
            return {"status": "completed", "response": heard.answer}
        if not heard.replied:
            return {"response": None}
        why = heard.failure
        return {"success": False, "status": "failed", "error_message": why, "error": why}

    async def refuse_more(
        self, caller: Caller, here: Environment, given: Told, more: int = 1
    ) -> None:
        """See that there may be so many more, and that they do not take more than is left.

        Raises: StateForbids.
        """
        every = await self.every(caller)
        active = words.active(every)
        if active + more > here.max_instances:
            by = actor(caller, "agent_spawn")
            await self._service.store.note(by, "", errors.StateForbids.code)
            raise errors.StateForbids(
                f"{active} instances are active, and MAX_INSTANCES is {here.max_instances}",
                hint="terminate or suspend some of them",
            )
        left = await self.cost_left(caller, here, every)
        if left is not None:
            given["cost_usd"] = min(left, given.get("cost_usd", left))

    async def cost_left(
        self, caller: Caller, here: Environment, every: Sequence[Agent] | None = None
    ) -> float | None:
        """How much all instances may still take together; None where there is no limit.

        Raises: StateForbids when that is nothing.
        """
        if here.max_total_cost is None:
            return None
        spent = sum(self.taken(each).cost_usd for each in every or await self.every(caller))
        if spent >= here.max_total_cost:
            raise errors.StateForbids(
                f"all instances have taken ${spent:.4f}, and MAX_TOTAL_COST is "
                f"${here.max_total_cost:g}"
            )
        return here.max_total_cost - spent

    async def _named(self, caller: Caller, title: str, given: Told) -> Agent:
        """Spawn under a name that nobody has; what it is called is its title."""
        plain = words.plain_name(title)
        call = replace(self._service.calls["agent_spawn"], handler=partial(_spawned_as, title))
        for number in range(_NAMES_TRIED):
            name = plain if number == 0 else f"{plain}-{number + 1}"
            try:
                asked = {k: v for k, v in given.items() if v is not None} | {"name": name}
                return cast("Agent", await self._service.perform(call, caller, asked))
            except errors.AlreadyExists:
                continue
        raise errors.AlreadyExists(f"{_NAMES_TRIED} instances live that are called {title}")

    # Looked at

    async def every(self, caller: Caller) -> list[Agent]:
        """All that the caller may see, those too that are over."""
        return await self._service.host.agents.visible(actor(caller, "agent_list"))

    async def one(self, caller: Caller, instance_id: str) -> Agent:
        """Raises: NotFound."""
        try:
            return await self._service.host.agents.get(instance_id, actor(caller, "agent_get"))
        except errors.NotFound as error:
            raise errors.NotFound(f"Instance {instance_id[:100]} not found") from error

    async def said(self, caller: Caller, agent: Agent) -> list[Message]:
        by = actor(caller, "agent_output")
        return await self._service.host.agents.messages(agent.agent_id, by)

    def taken(self, agent: Agent) -> Taken:
        """What an instance has taken by now, in the middle of a turn too."""
        return self._service.host.agents.accounts.taken(agent.agent_id)

    async def status(self, caller: Caller, _here: Environment, asked: words.AnyOne) -> Told:
        if asked.instance_id is not None:
            status = await self.all_of(caller, asked.instance_id)
        else:
            status = await self.all_of_them(caller)
        return {"success": True, "status": status, "message": "Retrieved instance status"}

    async def all_of(self, caller: Caller, instance_id: str) -> Told:
        """Say all of an instance, what became of what was said to it too, how fast and how well."""
        agent = await self.one(caller, instance_id)
        told = await metrics_of(self._service.host.agents, agent)
        return {
            **self.details(agent),
            "health_score": told.health,
            "success_rate": told.success_rate,
            "error_count": told.failed,
            "errors": told.errors,
            "response_times": told.response.model_dump(mode="json"),
        }

    async def all_of_them(self, caller: Caller) -> Told:
        every = await self.every(caller)
        return {
            "instances": {each.agent_id: self.details(each) for each in every},
            "total_instances": len(every),
            "active_instances": words.active(every),
            "terminated_instances": sum(each.state is AgentState.ENDED for each in every),
            "total_tokens_used": sum(self.taken(each).tokens for each in every),
            "total_cost": sum(self.taken(each).cost_usd for each in every),
        }

    def details(self, agent: Agent) -> Told:
        """Say all of an instance, under the names that it had there."""
        character, limits, taken = agent.character, agent.budget, self.taken(agent)
        allowed = {
            "max_total_tokens": limits.tokens,
            "max_cost": limits.cost_usd,
            "timeout_minutes": None if limits.wall_s is None else limits.wall_s / words.MINUTE_S,
        }
        failed = agent.state is AgentState.FAILED
        return {
            **words.brief(agent),
            "instance_id": agent.agent_id,
            "model": character.model,
            "system_prompt": character.system_prompt,
            "has_custom_prompt": character.system_prompt is not None,
            "workspace_dir": WORKSPACE,
            "machine_id": agent.machine_id,
            "created_at": rfc3339(agent.created_at),
            "last_activity": self._last_activity(agent),
            "total_tokens_used": taken.tokens,
            "total_cost": taken.cost_usd,
            "request_count": agent.usage.requests,
            "resource_limits": {k: v for k, v in allowed.items() if v is not None},
            "parent_instance_id": agent.parent,
            "mcp_servers": sorted(character.mcp_servers),
            "use_worktree": agent.work is not None,
            "git_repo": None if agent.work is None else agent.work.repo,
            "git_worktree_branch": None if agent.work is None else agent.work.branch,
            "error_message": agent.reason if failed else None,
            "state_reason": agent.reason or None,
        }

    async def health(self, caller: Caller, instance_id: str) -> Told:
        """Say whether an instance is well, as that program's own check did."""
        agent = await self.one(caller, instance_id)
        ended = agent.ended_at.timestamp() if agent.ended_at else time.time()
        return {
            "instance_id": agent.agent_id,
            "healthy": not agent.over,
            "state": words.state_of(agent),
            "last_activity": self._last_activity(agent),
            "uptime_seconds": max(0.0, ended - agent.created_at.timestamp()),
        }

    def _last_activity(self, agent: Agent) -> str:
        """When it had to do with a message, was spawned or ended; no message is read for that."""
        tally = self._service.host.agents.tallies.find(agent.agent_id)
        heard = None if tally is None or tally.last_at is None else moment(tally.last_at)
        moments = (agent.created_at, agent.ended_at, heard)
        return rfc3339(max(each for each in moments if each is not None))

    async def tree(self, caller: Caller, _here: Environment, _asked: words.Nothing) -> str:
        places = self._service.host.agents.tree(actor(caller, "agent_tree"))
        lines = [
            f"{'  ' * depth}{words.name_of(agent)} ({agent.agent_id}) [{words.state_of(agent)}] "
            f"({agent.character.driver})"
            for agent, depth in places
        ]
        return "\n".join(lines) or "No instances running"

    async def children(self, caller: Caller, _here: Environment, asked: words.Parent) -> list[Told]:
        return await self._relatives(caller, "agent_children", asked.parent_id)

    async def peers(self, caller: Caller, _here: Environment, asked: words.One) -> list[Told]:
        return await self._relatives(caller, "agent_peers", asked.instance_id)

    async def _relatives(self, caller: Caller, call: str, instance_id: str) -> list[Told]:
        agent = await self.one(caller, instance_id)
        found = await self._service.invoke(caller, call, {"agent": agent.agent_id})
        return [words.brief(each) for each in cast("ListOfAgents", found).agents]

    async def main(self, caller: Caller, _here: Environment, _asked: words.Nothing) -> None:
        """Nobody who asks from outside is an instance, so none is the main one."""
        del caller

    async def persisted(self, caller: Caller, _here: Environment, _asked: words.Nothing) -> Told:
        every = await self.every(caller)
        kept = [self.details(each) for each in every if not each.over]
        return {"instances": kept, "count": len(kept)}

    # Ended

    async def terminate(self, caller: Caller, _here: Environment, asked: words.Terminate) -> Told:
        agent = await self.one(caller, asked.instance_id)
        given = {"agent": agent.agent_id, "force": asked.force, "cascade": asked.force}
        told = {"instance_id": agent.agent_id}
        try:
            await self._service.invoke(caller, "agent_end", given)
        except errors.OrchestratorError as error:
            said = f"Failed to terminate instance {agent.agent_id}: {error.message}"
            said += "" if asked.force else " (try with force=true)"
            status = words.state_of(await self.one(caller, agent.agent_id))
            refused = {"success": False, "status": status, "error": error.message}
            return {**refused, **told, "message": said}
        said = f"Successfully terminated instance {agent.agent_id}"
        return {"success": True, "status": "terminated", **told, "message": said}

    async def terminate_several(
        self, caller: Caller, here: Environment, asked: words.TerminateMany
    ) -> Told:
        terminated: list[str] = []
        failed: list[Told] = []
        # One after the other: a parent's children may be named behind it.
        for each in asked.instance_ids:
            one = words.Terminate(instance_id=each, force=asked.force)
            try:
                told = await self.terminate(caller, here, one)
            except errors.OrchestratorError as error:
                told = {"success": False, "error": words.why(error)}
            if told["success"]:
                terminated.append(each)
            else:
                failed.append({"instance_id": each, "error": told["error"]})
        return {"terminated": terminated, "failed": failed}

    async def suspend(self, caller: Caller, _here: Environment, asked: words.One) -> Told:
        agent = await self.one(caller, asked.instance_id)
        given = {"agent": agent.agent_id, "wait_s": _SUSPEND_S}
        ran = cast("Operation", await self._service.invoke(caller, "agent_suspend", given))
        status = words.state_of(await self.one(caller, agent.agent_id))
        told: Told = {"instance_id": agent.agent_id, "status": status}
        if status == "suspended":
            return {**told, "success": True}
        why = ran.error.message if ran.error else "it is suspended when its turn is over"
        return {**told, "success": False, "error": why}

    async def resume(self, caller: Caller, _here: Environment, asked: words.Resume) -> Told:
        agent = await self.one(caller, asked.instance_id)
        given = {"agent": agent.agent_id}
        resumed = cast("Agent", await self._service.invoke(caller, "agent_resume", given))
        return {
            "success": True,
            "instance_id": resumed.agent_id,
            "name": words.name_of(resumed),
            "status": words.state_of(resumed),
        }

    async def interrupt(self, caller: Caller, _here: Environment, asked: words.One) -> Told:
        agent = await self.one(caller, asked.instance_id)
        given = {"agent": agent.agent_id}
        told = cast("Interrupted", await self._service.invoke(caller, "agent_interrupt", given))
        done = told.interrupted
        return {
            "success": done,
            "instance_id": agent.agent_id,
            "message": "Its turn was broken off" if done else "It is in no turn",
            "confirmed": done,
            "timestamp": rfc3339(moment(time.time())),
        }

    async def interrupt_several(self, caller: Caller, here: Environment, asked: words.Many) -> Told:
        async def one(instance_id: str) -> Told:
            try:
                return await self.interrupt(caller, here, words.One(instance_id=instance_id))
            except errors.OrchestratorError as error:
                return {"success": False, "instance_id": instance_id, "message": words.why(error)}

        told = await together([partial(one, each) for each in asked.instance_ids], at_once=8)
        return {
            "interrupted": [each["instance_id"] for each in told if each["success"]],
            "failed": [
                {"instance_id": each["instance_id"], "error": each["message"]}
                for each in told
                if not each["success"]
            ],
        }


def _asked_for(here: Environment, asked: words.Spawn) -> Told:
    """Say what an instance is to be in the words of agents. Raises: InvalidInput."""
    if asked.use_worktree and asked.git_repo is None:
        raise errors.InvalidInput("use_worktree needs git_repo, the alias of a repository")
    tokens = words.least(asked.max_total_tokens, here.max_tokens)
    minutes = words.least(asked.timeout_minutes, here.timeout_minutes)
    return {
        "model": asked.model,
        "system_prompt": asked.system_prompt,
        "credentials": here.credentials,
        "parent": asked.parent_instance_id,
        "mcp_servers": words.servers_of(asked.mcp_servers),
        "repo": asked.git_repo,
        **words.limits(asked.max_cost, tokens, minutes),
    }


async def _spawned_as(
    title: str, service: Service, caller: Caller, request: SpawnAgent
) -> BaseModel:
    return await spawned(service, request, actor(caller, "agent_spawn"), title=title)


def _spawned(told: Told, what: str) -> str:
    if not told["success"]:
        return f"Failed to spawn {what}: {told['error']}"
    return f"Successfully spawned {what}"
