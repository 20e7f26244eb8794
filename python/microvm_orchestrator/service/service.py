"""Every request's way in: check, authorise, answer, audit - the same for each front end.

Above sit the front ends, which only translate; below are the functions of this package that the
table of calls names. A `Service` lives as long as the daemon and owns nothing but references.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import anyio
from pydantic import BaseModel, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.service.token_life import refuse_ended, while_good

if TYPE_CHECKING:
    from microvm_orchestrator.config import Settings
    from microvm_orchestrator.events import Journal
    from microvm_orchestrator.host import Host
    from microvm_orchestrator.service.calls import Call, Caller
    from microvm_orchestrator.store.base import Store

M = TypeVar("M", bound=BaseModel)


class Observe(Protocol):
    """Is told of every call: `outcome` is `ok`, the code of an error, or `cancelled`."""

    def __call__(self, call: str, via: str, outcome: str, seconds: float) -> None: ...


def _unobserved(call: str, via: str, outcome: str, seconds: float) -> None:
    """Count nothing."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the daemon offers, and the parts its functions work with."""

    store: Store
    journal: Journal
    host: Host
    settings: Settings
    calls: Mapping[str, Call]
    observe: Observe = _unobserved

    async def invoke(self, caller: Caller, name: str, arguments: Mapping[str, object]) -> BaseModel:
        """Answer one call.

        Raises: any `OrchestratorError`. A refused call that would have changed something is
        audited before the error goes on.
        """
        call = self.calls.get(name)
        if call is None:
            raise errors.NotFound(
                f"no call is named {name}", hint="list the tools to see the names"
            )
        return await self.perform(call, caller, arguments)

    async def perform(
        self, call: Call, caller: Caller, arguments: Mapping[str, object]
    ) -> BaseModel:
        """Answer a call, be it one of the table or not. Raises: as `invoke`."""
        began = time.perf_counter()
        outcome = errors.OrchestratorError.code
        try:
            answer = await self._answer(call, caller, arguments)
            outcome = "ok"
            return answer
        except errors.OrchestratorError as refusal:
            outcome = refusal.code
            if call.audited and not isinstance(refusal, errors.Unavailable):
                # A store that cannot take the line shall not hide why the call was refused.
                with contextlib.suppress(errors.Unavailable):
                    await self.store.note(
                        actor(caller, call.name), _target(arguments), refusal.code
                    )
            raise
        except anyio.get_cancelled_exc_class():
            outcome = "cancelled"
            raise
        finally:
            self.observe(call.name, caller.via, outcome, time.perf_counter() - began)

    async def _answer(
        self, call: Call, caller: Caller, arguments: Mapping[str, object]
    ) -> BaseModel:
        if not caller.principal.role.reaches(call.role):
            raise errors.Denied(
                f"{call.name} needs the role {call.role}, and {caller.principal.name} "
                f"has {caller.principal.role}"
            )
        request = parse(call.request, arguments)
        token_id = caller.principal.token_id
        if token_id is None:
            return await call.handler(self, caller, request)
        # The front end looked when the connection or the request began, which may be long ago.
        await refuse_ended(self.store, token_id)
        work = call.handler(self, caller, request)
        if call.waits:
            return await while_good(self.store, self.journal, token_id, work)
        return await work


def actor(caller: Caller, call: str) -> Actor:
    """Who does what through which door, as the audit log writes it."""
    who = caller.principal
    return Actor(name=who.name, role=who.role, via=caller.via, action=call, scope=who.scope)


def parse(model: type[M], arguments: Mapping[str, object]) -> M:
    """Make the request of what a client sent, or say what is wrong with all of it at once."""
    try:
        return model.model_validate(arguments)
    except ValidationError as error:
        raise _explained(error) from error


_SIZE_PROBLEMS = frozenset({"string_too_long", "too_long", "bytes_too_long"})
# A thousand bad items of one list help nobody.
_PROBLEMS_TOLD = 8


def _explained(error: ValidationError) -> errors.OrchestratorError:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    told = "; ".join(
        f"{'.'.join(str(step)[:80] for step in problem['loc']) or 'request'}: {problem['msg']}"
        for problem in found[:_PROBLEMS_TOLD]
    )
    more = f" (and {len(found) - _PROBLEMS_TOLD} more)" if len(found) > _PROBLEMS_TOLD else ""
    kind = errors.InvalidInput
    if any(problem["type"] in _SIZE_PROBLEMS for problem in found):
        kind = errors.TooLarge
    return kind(told + more)


# Arguments that name what a call is about, so that a refused call can be found by its target.
_NAMING = (
    *(
        "exec_id",
        "forward_id",
        "fault_id",
        "task_id",
        "group",
        "machine",
        "network",
        "snapshot_id",
        "cluster",
        "agent",
        "message_id",
        "image",
        "operation_id",
        "name",
        "worker",
    ),
    *("webhook_id", "token_id", "key", "domain", "repo", "path"),
)


def _target(arguments: Mapping[str, object]) -> str:
    for name in _NAMING:
        value = arguments.get(name)
        if isinstance(value, str):
            # It was refused, so it may be anything.
            return value[:200].encode(errors="backslashreplace").decode()
    return ""
