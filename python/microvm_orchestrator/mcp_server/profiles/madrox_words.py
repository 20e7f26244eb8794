"""What the tools of the profile `madrox` take, and how its users say it.

Names and defaults are those of that program's README, and of its later version where the README has
none. Above is the profile; below, the words of agents.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.model.agent import Agent, AgentState, Said
from microvm_orchestrator.model.agent_budget import AtLimit
from microvm_orchestrator.model.values import Line
from microvm_orchestrator.service.calls import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from microvm_orchestrator.model.agent import Message

# A client gives up on a call at some time.
_WAIT_MOST_S = 3600.0
_MANY = 64
MINUTE_S = 60.0
N = TypeVar("N", int, float)

InstanceId = Annotated[str, Field(min_length=1, max_length=100, description="its id")]
InstanceIds = Annotated[list[InstanceId], Field(max_length=_MANY)]
Waits = Annotated[float, Field(ge=0, le=_WAIT_MOST_S)]
Title = Annotated[Line, Field(min_length=1, max_length=200)]


class _Limited(Request):
    max_total_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="of model APIs, in its life; those read from caches too"
    )
    max_cost: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="of model APIs, in its life, in dollars at list prices"
    )
    timeout_minutes: Annotated[float, Field(gt=0, le=43_200)] | None = Field(
        default=None, description="how long it may work in its life; waiting counts for nothing"
    )


class Spawn(_Limited):
    """What every instance is spawned with."""

    name: Title = Field(description="what you call it")
    role: Line = Field(default="general", description="such as architect or frontend_developer")
    system_prompt: Said | None = Field(default=None, description="added to that of its role")
    model: Line | None = Field(default=None, description="as its program names it")
    bypass_isolation: bool = Field(
        default=True, description="its machine is its own, so it may do anything there"
    )
    parent_instance_id: InstanceId | None = Field(
        default=None, description="the instance that it belongs to, and ends with"
    )
    initial_prompt: Said | None = Field(default=None, description="what it is told first")
    mcp_servers: str | dict[str, Any] | None = Field(
        default=None, description="further MCP servers, as JSON"
    )
    use_worktree: bool = Field(
        default=False, description="work on a checkout of git_repo, on a branch of its own"
    )
    git_repo: Line | None = Field(default=None, description="the alias of a registered repository")
    wait_for_response: bool = Field(default=False, description="to the initial prompt")
    timeout_seconds: Waits = Field(default=180.0, description="how long to wait for that")


class SpawnClaude(Spawn):
    """A Claude instance."""

    wait_for_ready: bool = Field(default=True, description="wait until it can be talked to")


class SpawnCodex(Spawn):
    """A Codex instance."""

    sandbox_mode: Literal["read-only", "workspace-write", "danger-full-access"] = Field(
        default="workspace-write", description="its machine is its sandbox, whatever is said here"
    )
    profile: None = Field(default=None, description="there are no profiles of Codex here")


class SpawnMany(Request):
    """Several instances."""

    instances: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=_MANY)] = Field(
        description="each with the parameters of spawn_claude; with `instance_type` codex, of that"
    )


class SpawnTeam(Request):
    """A team."""

    template_name: Line
    task_description: Said | None = Field(default=None, description="without one they stand by")
    supervisor_role: Line | None = None
    parent_instance_id: InstanceId | None = None


class Send(Request):
    """Something to say to an instance."""

    instance_id: InstanceId
    message: Said
    wait_for_response: bool = True
    timeout_seconds: Waits = 180.0
    priority: int = Field(default=0, description="messages are heard in their order, whatever this")


class SendMany(Request):
    """Something to say to several instances."""

    instance_ids: InstanceIds
    message: Said
    wait_for_responses: bool = False
    timeout_seconds: Waits = 180.0


class Broadcast(Request):
    """Something to say to all children of an instance."""

    parent_id: InstanceId
    message: Said
    wait_for_responses: bool = False
    timeout_seconds: Waits = 180.0


class Output(Request):
    """Which part of what was said."""

    instance_id: InstanceId
    limit: Annotated[int, Field(ge=1, le=10_000)] = 100
    since: str | None = Field(default=None, max_length=100, description="only what is later")


class OutputOfMany(Request):
    """Which part of what was said to several."""

    instance_ids: InstanceIds
    limit: Annotated[int, Field(ge=1, le=10_000)] = 100
    since: str | None = Field(default=None, max_length=100, description="only what is later")


class Coordinate(Request):
    """A task for several instances."""

    coordinator_id: InstanceId
    participant_ids: Annotated[InstanceIds, Field(min_length=1)]
    task_description: Said
    coordination_type: Literal["sequential", "parallel", "consensus", "hierarchical"] = "sequential"


class Job(Request):
    """A coordination to look at."""

    job_id: Line
    wait_for_completion: bool = True
    max_wait: Waits = 120.0


class Nothing(Request):
    """No parameters."""


class One(Request):
    """An instance."""

    instance_id: InstanceId


class AnyOne(Request):
    """An instance, or all of them."""

    instance_id: InstanceId | None = None


class Many(Request):
    """Several instances."""

    instance_ids: InstanceIds


class Parent(Request):
    """An instance that others belong to."""

    parent_id: InstanceId


class Terminate(One):
    """An instance to end."""

    force: bool = Field(
        default=False, description="also in the middle of a turn, and with its children"
    )


class TerminateMany(Many):
    """Several instances to end."""

    force: bool = False


class Resume(One):
    """An instance that was suspended."""

    name: None = Field(default=None, description="it keeps its name")
    model: None = Field(default=None, description="it keeps its model")


class Pane(One):
    """How much to see."""

    lines: Annotated[int, Field(ge=-1, le=10_000)] = 100


class Retrieve(One):
    """A file of an instance."""

    filename: Annotated[str, Field(min_length=1, max_length=4096)]
    destination_path: str | None = Field(default=None, max_length=4096)


class RetrieveMany(Request):
    """Files of instances."""

    retrievals: Annotated[list[Retrieve], Field(max_length=_MANY)]


class Reply(One):
    """An answer to whoever asked."""

    reply_message: Said
    correlation_id: Line | None = None


class Replies(One):
    """Whose answers."""

    wait_timeout: Waits = 0.0


class Environment(BaseModel):
    """What that program's users set by its environment variables."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    max_instances: Annotated[int, Field(ge=1)] = Field(10, alias="MAX_INSTANCES")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, alias="MAX_TOKENS_PER_INSTANCE")
    max_total_cost: Annotated[float, Field(gt=0)] | None = Field(None, alias="MAX_TOTAL_COST")
    timeout_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, alias="INSTANCE_TIMEOUT_MINUTES"
    )
    # What the command made of the key in its environment.
    credential: str | None = Field(None, alias="CREDENTIAL")

    @property
    def credentials(self) -> list[str]:
        return [] if self.credential is None else [self.credential]


def environment_of(settings: Mapping[str, str]) -> Environment:
    """Raises: InvalidInput."""
    try:
        return Environment.model_validate({k: v for k, v in settings.items() if v.strip()})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise errors.InvalidInput(f"{first['loc'][0]}: {first['msg']}") from error


_STATES = {
    AgentState.STARTING: "initializing",
    AgentState.ENDED: "terminated",
    AgentState.FAILED: "error",
}
# Those whose machine is up, or is about to be.
_UP = frozenset({AgentState.IDLE, AgentState.BUSY})
_ACTIVE = _UP | {AgentState.STARTING}
_UNPLAIN = re.compile(r"[^A-Za-z0-9]+")
_NAME_MOST = 40


def state_of(agent: Agent) -> str:
    """Say how an instance stands, in that program's words."""
    return _STATES.get(agent.state, str(agent.state))


def name_of(agent: Agent) -> str:
    return agent.title or agent.name


def plain_name(title: str) -> str:
    """Make a name that can be typed of one in any words."""
    return _UNPLAIN.sub("-", title).strip("-")[:_NAME_MOST].strip("-") or "instance"


def servers_of(given: str | dict[str, Any] | None) -> dict[str, Any]:
    """Read further MCP servers, which come as JSON or as text with JSON in it.

    Raises: InvalidInput.
    """
    return {name: _server_of(server) for name, server in _servers(given).items()}


def _server_of(given: Any) -> Any:
    """Call the way in which a server is spoken with as `.mcp.json` does."""
    match given:
        case {"transport": way, **rest}:
            return {"type": way, **rest}
        case _:
            return given


def _servers(given: str | dict[str, Any] | None) -> dict[str, Any]:
    if given is None or isinstance(given, dict):
        return given or {}
    try:
        read: object = json.loads(given) if given.strip() else {}
    except (ValueError, RecursionError) as error:
        raise errors.InvalidInput("mcp_servers is no JSON") from error
    if not isinstance(read, dict):
        raise errors.InvalidInput("mcp_servers is no JSON object")
    return dict(read)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # what it holds is judged by who takes it


def brief(agent: Agent) -> dict[str, Any]:
    """Say of an instance what its relatives are told."""
    return {
        "id": agent.agent_id,
        "name": name_of(agent),
        "role": agent.character.role or "general",
        "state": state_of(agent),
        "instance_type": agent.character.driver,
    }


def active(agents: Iterable[Agent]) -> int:
    """How many of them are up, or will be."""
    return sum(1 for each in agents if each.state in _ACTIVE)


def running(agents: Iterable[Agent]) -> int:
    """How many of them are up."""
    return sum(1 for each in agents if each.state in _UP)


def answered(message: Message) -> bool:
    """Whether there is an answer, though its turn may go on."""
    return message.answer is not None and message.error is None


def error_of(message: Message) -> str | None:
    """Why there is no answer to a message that is over."""
    return None if answered(message) else message.failure


def why(error: errors.OrchestratorError) -> str:
    return error.message + (f" ({error.hint})" if error.hint else "")


def least(first: N | None, second: N | None) -> N | None:
    """Of two limits the one that is reached first."""
    given = [each for each in (first, second) if each is not None]
    return min(given, default=None)


def limits(cost: float | None, tokens: int | None, minutes: float | None) -> dict[str, Any]:
    """Write limits as agents have them; what is not limited is left out.

    That program promised to end who reaches one.
    """
    wall_s = None if minutes is None else minutes * MINUTE_S
    given = {"cost_usd": cost, "tokens": tokens, "wall_s": wall_s}
    held = {name: limit for name, limit in given.items() if limit is not None}
    return {**held, "at_limit": str(AtLimit.END)}
