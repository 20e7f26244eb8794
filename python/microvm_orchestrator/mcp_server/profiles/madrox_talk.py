"""What is said to instances of the profile `madrox` and what they answer, translated onto messages.

An answer is that of the message, never what was scraped of a screen. Above is the profile; below,
the calls of messages.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.profiles import madrox_words as words
from microvm_orchestrator.model.agent import MESSAGE
from microvm_orchestrator.model.values import rfc3339
from microvm_orchestrator.service.messages import came_to
from microvm_orchestrator.service.service import actor
from microvm_orchestrator.service.waiting import until
from microvm_orchestrator.store.base import Match
from microvm_orchestrator.together import together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm_orchestrator.mcp_server.profiles.madrox_instances import Instances, Told
    from microvm_orchestrator.mcp_server.profiles.madrox_words import Environment
    from microvm_orchestrator.model.agent import Agent, Message
    from microvm_orchestrator.service.agent_follow import Followed
    from microvm_orchestrator.service.agents import ListOfAgents
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

_BRIEF = 200
# What a terminal of that program showed where one asked for what is visible.
_VISIBLE = 50
# Looks at what was said are of one message each.
_LOOKS_MOST = 10_000


class Talk:
    """What is said to the instances of one daemon."""

    def __init__(self, service: Service, instances: Instances) -> None:
        self._service = service
        self._instances = instances
        # Of the answers to what an instance said, up to when somebody has read them.
        self._read_until: dict[tuple[str, str], datetime] = {}

    # Said

    async def send(self, caller: Caller, here: Environment, asked: words.Send) -> Told:
        agent = await self._instances.one(caller, asked.instance_id)
        await self._instances.cost_left(caller, here)
        before = self._instances.taken(agent).tokens
        wait_s = float(asked.timeout_seconds) if asked.wait_for_response else 0.0
        given = {"agent": agent.agent_id, "text": asked.message, "wait_s": wait_s}
        message = cast("Message", await self._service.invoke(caller, "agent_send", given))
        told: Told = {
            "success": True,
            "instance_id": agent.agent_id,
            "message_id": message.message_id,
            "status": "sent" if str(agent.state) in {"idle", "suspended"} else "queued",
            "response": None,
        }
        if not message.replied:
            why = "timeout" if asked.wait_for_response else "no response requested"
            return {**told, "message": f"Message sent ({why})"}
        answer = await self._answer(caller, before, message)
        if words.answered(message):
            said = "Message sent and response received"
            return {**told, "status": "completed", "response": answer, "message": said}
        failed = {"success": False, "status": "failed", "response": answer}
        said = f"Failed to send message: {answer['error']}"
        return {**told, **failed, "error": answer["error"], "message": said}

    async def _answer(self, caller: Caller, before: int, message: Message) -> Told:
        tokens = await self._tokens(caller, before, message)
        ended = message.replied_at or message.created_at
        return {
            "instance_id": message.agent_id,
            "message_id": message.message_id,
            "response": message.answer,
            "error": words.error_of(message),
            "timestamp": rfc3339(ended),
            "tokens_used": tokens,
            "estimated_tokens": tokens,
            "response_time": round((ended - message.created_at).total_seconds(), 3),
            "protocol": "bidirectional",
        }

    async def _tokens(self, caller: Caller, before: int, message: Message) -> int | None:
        """What an answer took; nobody knows where others were answered meanwhile."""
        after = await self._instances.one(caller, message.agent_id)
        for other in await self._instances.said(caller, after):
            other_meanwhile = other.message_id != message.message_id and (
                other.ended_at is None or other.ended_at >= message.created_at
            )
            if other_meanwhile and other.began_at is not None:
                return None
        return self._instances.taken(after).tokens - before

    async def send_to_several(
        self, caller: Caller, here: Environment, asked: words.SendMany
    ) -> Told:
        told = await self._each(caller, here, asked.instance_ids, asked.message, _waits(asked))
        return {
            "sent": [each for each in told if each["success"]],
            "errors": [
                {"instance_id": each["instance_id"], "error": each["error"]}
                for each in told
                if not each["success"]
            ],
        }

    async def broadcast(self, caller: Caller, here: Environment, asked: words.Broadcast) -> Told:
        parent = await self._instances.one(caller, asked.parent_id)
        found = await self._service.invoke(caller, "agent_children", {"agent": parent.agent_id})
        children = cast("ListOfAgents", found).agents
        ids = [each.agent_id for each in children]
        told = await self._each(caller, here, ids, asked.message, _waits(asked))
        results = [
            {
                "child_id": child.agent_id,
                "child_name": words.name_of(child),
                "status": each.get("status", "failed"),
                **({"response": each["response"]} if each["success"] else {"error": each["error"]}),
            }
            for child, each in zip(children, told, strict=True)
        ]
        return {"children_count": len(children), "results": results}

    async def _each(
        self,
        caller: Caller,
        here: Environment,
        ids: Sequence[str],
        text: str,
        wait_s: float | None,
    ) -> list[Told]:
        async def one(instance_id: str) -> Told:
            asked = words.Send(
                instance_id=instance_id,
                message=text,
                wait_for_response=wait_s is not None,
                timeout_seconds=wait_s or 0.0,
            )
            try:
                return await self.send(caller, here, asked)
            except errors.OrchestratorError as error:
                return {"success": False, "instance_id": instance_id, "error": words.why(error)}

        return await together([partial(one, each) for each in ids], at_once=64)

    # Answered

    async def output(self, caller: Caller, _here: Environment, asked: words.Output) -> Told:
        agent = await self._instances.one(caller, asked.instance_id)
        entries = await self._entries(caller, agent, asked.limit, asked.since)
        return {
            "success": True,
            "instance_id": agent.agent_id,
            "output": entries,
            "count": len(entries),
            "message": f"Retrieved {len(entries)} output messages",
        }

    async def output_of_several(
        self, caller: Caller, here: Environment, asked: words.OutputOfMany
    ) -> Told:
        outputs: list[Told] = []
        failed: list[Told] = []
        for each in asked.instance_ids:
            one = words.Output(instance_id=each, limit=asked.limit, since=asked.since)
            try:
                told = await self.output(caller, here, one)
                outputs.append({"instance_id": told["instance_id"], "output": told["output"]})
            except errors.NotFound as error:
                failed.append({"instance_id": each, "error": words.why(error)})
        return {"outputs": outputs, "errors": failed}

    async def _entries(
        self, caller: Caller, agent: Agent, limit: int, since: str | None
    ) -> list[Told]:
        after = None if since is None else _time(since)
        entries: list[tuple[datetime, Told]] = []
        for message in await self._instances.said(caller, agent):
            known = {"instance_id": agent.agent_id, "message_id": message.message_id}
            at = message.created_at
            user = {**known, "timestamp": rfc3339(at), "type": "user", "content": message.text}
            entries.append((at, user))
            if message.replied:
                at = message.replied_at or at
                content = message.answer if message.answer is not None else ""
                told = {"timestamp": rfc3339(at), "type": "response", "content": content}
                error = words.error_of(message)
                entries.append((at, {**known, **told, **({"error": error} if error else {})}))
        told = [{**entry, "message_index": index} for index, (_, entry) in enumerate(entries)]
        later = [
            entry
            for entry, (at, _) in zip(told, entries, strict=True)
            if after is None or at > after
        ]
        return later[-limit:]

    async def live(self, caller: Caller, _here: Environment, asked: words.One) -> Told:
        agent = await self._instances.one(caller, asked.instance_id)
        said = await self._instances.said(caller, agent)
        began = max((each.message_id for each in said if each.began_at), default=None)
        pieces = await self._heard(caller, agent, f"{began}@0") if began else []
        tools = [piece["text"].partition(":")[0] for piece in pieces if piece["kind"] == "does"]
        busy = words.state_of(agent) == "busy"
        now_doing = next(
            (piece["text"] for piece in reversed(pieces) if piece["kind"] in {"does", "says"}),
            None,
        )
        health = await self._instances.health(caller, agent.agent_id)
        return {
            "instance_id": agent.agent_id,
            "name": words.name_of(agent),
            "role": agent.character.role or "general",
            "state": words.state_of(agent),
            "execution_time": health["uptime_seconds"],
            "last_activity": health["last_activity"],
            "current_tool": tools[-1] if busy and tools else None,
            "tools_executed": len(tools),
            "tools_breakdown": dict(Counter(tools)),
            "event_counts": dict(Counter(str(piece["kind"]) for piece in pieces)),
            "last_output": None if now_doing is None else now_doing[:_BRIEF],
            "note": "Tools and events are those of the last message that it heard.",
        }

    async def pane(self, caller: Caller, _here: Environment, asked: words.Pane) -> str:
        """Give the last lines of all that was said to an instance, and that it said and did."""
        agent = await self._instances.one(caller, asked.instance_id)
        said = [each for each in await self._instances.said(caller, agent) if each.began_at]
        wanted = _VISIBLE if asked.lines < 0 else asked.lines
        lines: list[str] = []
        for message in reversed(said):
            if len(lines) >= wanted:
                break
            pieces = await self._heard(caller, agent, f"{message.message_id}@0", only=message)
            shown = [f"> {message.text}", *(_shown(piece) for piece in pieces)]
            lines = "\n".join(shown).splitlines() + lines
        return "\n".join(lines[-wanted:] if wanted else [])

    async def _heard(
        self, caller: Caller, agent: Agent, cursor: str, only: Message | None = None
    ) -> list[Told]:
        """Give what is kept of a message from a place in it on."""
        message_id = cursor.partition("@")[0] if only is None else only.message_id
        pieces: list[Told] = []
        for _ in range(_LOOKS_MOST):
            given = {"agent": agent.agent_id, "cursor": cursor}
            told = cast("Followed", await self._service.invoke(caller, "agent_follow", given))
            pieces += [
                piece.model_dump(mode="json")
                for piece in told.pieces
                if piece.message_id == message_id
            ]
            cursor = told.cursor
            within = cursor.startswith(f"{message_id}@") and not cursor.endswith("over")
            if not (told.pieces and within):
                break
        return pieces

    # As an instance

    async def reply(self, caller: Caller, _here: Environment, asked: words.Reply) -> NoReturn:
        """Raises: Denied: nobody is an instance because it says so."""
        await self._no_instance(caller, "reply_to_caller", asked.instance_id)

    async def replies(self, caller: Caller, _here: Environment, asked: words.Replies) -> list[Told]:
        """Give the answers that came to what an instance said, each once to whoever asks.

        Beside them those to what whoever asks has said to it and its children, which were replies
        to it there.
        """
        agent = await self._instances.one(caller, asked.instance_id)
        family = {
            each.agent_id
            for each in await self._instances.every(caller)
            if agent.agent_id in {each.agent_id, each.parent}
        }
        reader = (caller.principal.name, agent.agent_id)
        by = actor(caller, "get_pending_replies")
        found = await until(
            self._service,
            caller,
            Match(kinds=(f"{MESSAGE}.*",)),
            asked.wait_timeout,
            look=lambda: came_to(
                self._service, by, agent.agent_id, self._read_until.get(reader), told=family
            ),
            over=bool,
            said=lambda _: "nothing yet",
        )
        if not found:
            return []
        latest = max(each.replied_at for each in found if each.replied_at is not None)
        self._read_until[reader] = latest
        return [
            {
                "sender_id": each.agent_id,
                "reply_message": each.answer if words.answered(each) else "",
                "correlation_id": each.message_id,
                "timestamp": rfc3339(each.replied_at or each.created_at),
                **({} if words.answered(each) else {"error": words.error_of(each)}),
            }
            for each in found
        ]

    async def _no_instance(self, caller: Caller, tool: str, instance_id: str) -> NoReturn:
        by = actor(caller, tool)
        await self._service.store.note(by, instance_id, errors.Denied.code)
        raise errors.Denied(
            f"you are {caller.principal.name}, and not instance {instance_id[:100]}",
            hint="instances answer from their own machines; get_instance_output has the answers",
        )


def _waits(asked: words.SendMany | words.Broadcast) -> float | None:
    return float(asked.timeout_seconds) if asked.wait_for_responses else None


def _time(text: str) -> datetime:
    """Raises: InvalidInput."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        example = "as in 2026-01-31T12:00:00Z"
        raise errors.InvalidInput(f"since: {text[:40]} is no time", hint=example) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _shown(piece: dict[str, Any]) -> str:
    match piece["kind"]:
        case "does":
            return f"[{piece['text']}]"
        case "answer":
            return f"= {piece['state']}"
        case _:
            return str(piece["text"])
