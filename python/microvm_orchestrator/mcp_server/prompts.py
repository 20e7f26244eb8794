"""Prompts: the common ways of working with the task graph, told to a model in the tools' words.

A text names tools in backticks; a test holds each such name against the table of calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING

from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    GetPromptResult,
    ListPromptsResult,
    Prompt,
    PromptArgument,
    PromptMessage,
    TextContent,
)

if TYPE_CHECKING:
    from mcp.types import GetPromptRequestParams, PaginatedRequestParams

    from microvm_orchestrator.mcp_server.callers import Context


@dataclass(frozen=True, slots=True)
class _Argument:
    name: str
    description: str
    # What the text says when the argument is not given; without it, it must be.
    otherwise: str | None = None


@dataclass(frozen=True, slots=True)
class _Recipe:
    name: str
    title: str
    description: str
    arguments: tuple[_Argument, ...]
    text: str


_RECIPES = (
    _Recipe(
        "plan_graph",
        "Plan a goal as a task graph",
        "Break a goal into tasks with dependencies and submit them as one graph.",
        (
            _Argument("goal", "what shall be reached"),
            _Argument("group", "name for the graph", otherwise="a short name you choose"),
        ),
        """\
Plan this goal as a graph of tasks and submit it to the orchestrator:

$goal

1. Break it into tasks that one worker can finish alone. Write each description so that someone \
who has read nothing else can do it: what to do, where, and how to tell that it is done.
2. Give each task a short `key` and let `depends_on` name the keys it needs first. Depend only \
on what is really needed, so that the rest can run side by side. A diamond is fine; a cycle is \
refused.
3. Use `on: "failure"` for clean-up, a gate (`{"of": [...], "need": "any"}`) where one of \
several results is enough, and `retry` where a second attempt makes sense. Say in `capabilities` \
or `role` who can do it, if not everyone can.
4. Submit all of it with one call of `graph_submit`, group: $group. It is written whole or not \
at all; if it is refused, correct what the error names and submit again.
5. Look at it with `group_get`, tell the user the plan in a few lines, then follow it with \
`event_wait` or `task_wait` if they want to wait.
""",
    ),
    _Recipe(
        "work_as_worker",
        "Work as a worker",
        "Claim tasks one after the other, do them, and report what came of each.",
        (
            _Argument("worker", "your name as a worker, the same each time"),
            _Argument("capabilities", "what you can do, separated by commas", otherwise="none"),
            _Argument("group", "only tasks of this group", otherwise="any group"),
        ),
        """\
Work through the orchestrator's tasks as the worker `$worker`.
Your capabilities: $capabilities. Take tasks of: $group.

Repeat:
1. Call `task_claim` as this worker, and let it wait (`wait_s`) rather than asking again and \
again. Its verdict says how things stand: `claimed` gives you a task with a lease and a token; \
`blocked` means others are still at work, so claim again; `no_match` means the ready tasks ask \
for someone else; `all_done` means stop; `deadlocked` means stop and tell the user which tasks \
are stuck.
2. Do what the task's description says. While you work, call `task_heartbeat` with the token \
well before the lease runs out. If its answer is not held, stop that task at once and throw your \
work on it away: somebody decided otherwise.
3. Finish with exactly one call, with the token: `task_complete` with a result the next worker \
can use, `task_fail` with what went wrong, or `task_release` if it is not for you.
4. If you find more work that belongs to this graph, add it with `task_submit` before you \
complete.

A `lease-lost` error means that someone else has the task now: go on with the next one.
""",
    ),
    _Recipe(
        "review_failures",
        "Review the failures of a group",
        "Find out why tasks of a group failed, and propose what to retry, change or cancel.",
        (_Argument("group", "the group to look at"),),
        """\
Review what failed in the group `$group`.

1. Call `group_get` for the whole, then `task_list` with this group and the state `failed`.
2. For each failed task read `task_get` (its error), `task_runs` (each attempt) and \
`task_history` (what happened, attempt by attempt). Tell apart: the work itself was wrong; the \
worker went silent (leases ran out); the task ran out of time; it can no longer be met because \
of another failure.
3. Group the failures by cause and name the first cause of each chain, not its followers.
4. Propose, task by task: `task_retry` where trying again makes sense, `task_update` first where \
the description or the limits were wrong, `task_cancel` where it is no longer wanted. Say what \
will be unlocked. Do it only after the user agrees.
""",
    ),
)


class Prompts:
    """The prompts of the native server; the same for everyone."""

    def __init__(self) -> None:
        self._recipes = {recipe.name: recipe for recipe in _RECIPES}
        self._listed = ListPromptsResult(prompts=[_described(recipe) for recipe in _RECIPES])

    async def listed(
        self, _ctx: Context, _params: PaginatedRequestParams | None
    ) -> ListPromptsResult:
        return self._listed

    async def get(self, _ctx: Context, params: GetPromptRequestParams) -> GetPromptResult:
        recipe = self._recipes.get(params.name)
        if recipe is None:
            raise MCPError(code=INVALID_PARAMS, message=f"Unknown prompt: {params.name}")
        text = Template(recipe.text).substitute(_filled(recipe, params.arguments or {}))
        return GetPromptResult(
            description=recipe.description,
            messages=[PromptMessage(role="user", content=TextContent(type="text", text=text))],
        )


def _described(recipe: _Recipe) -> Prompt:
    return Prompt(
        name=recipe.name,
        title=recipe.title,
        description=recipe.description,
        arguments=[
            PromptArgument(
                name=argument.name,
                description=argument.description,
                required=argument.otherwise is None,
            )
            for argument in recipe.arguments
        ],
    )


def _filled(recipe: _Recipe, given: dict[str, str]) -> dict[str, str]:
    filled: dict[str, str] = {}
    for argument in recipe.arguments:
        value = given.get(argument.name, "").strip() or argument.otherwise
        if value is None:
            raise MCPError(
                code=INVALID_PARAMS,
                message=f"the prompt {recipe.name} needs the argument {argument.name}",
            )
        filled[argument.name] = value
    return filled
