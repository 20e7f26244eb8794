"""`coordination`: what came of the tasks that agents work on together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import Cursor, Limit, complete_agent, complete_coordination

app = typer.Typer(help="Coordinations: tasks that agents work on together, step by step.")

BRIEF = ("coordination_id", "coordinator", "kind", "state", "outcome", "created_at", "ended_at")
_STEPS = ("number", "part", "round", "agent", "state", "said")
_DISSENT = ("agent", "vote", "reason")
# --json has all of it, and so has `agent output`.
_SAID_MOST = 200


@command(app, "get", example="coordination get co_01k6vq...")
def get(
    here: Session,
    coordination_id: Annotated[
        str,
        typer.Argument(
            metavar="COORDINATION",
            help="The coordination's id.",
            autocompletion=complete_coordination,
            show_default=False,
        ),
    ],
) -> None:
    """Look at a coordination: where it stands, each step with its answer, and what came of it."""

    def show(answer: dict[str, Any]) -> None:
        output.record(_flat(answer["coordination"]))
        output.line("")
        rows = [{**step, "said": _said(step)} for step in answer["steps"]]
        output.table(_STEPS, rows)
        _result(answer["coordination"])

    here.tell("coordination_get", {"coordination_id": coordination_id}, show)


@command(app, "list", example="coordination list --coordinator lead")
def list_(
    here: Session,
    coordinator: Annotated[
        str | None,
        typer.Option(
            "--coordinator",
            metavar="AGENT",
            help="Only of this agent: its name or id.",
            autocompletion=complete_agent,
        ),
    ] = None,
    state: Annotated[
        Literal["running", "succeeded", "failed", "cancelled"] | None,
        typer.Option("--state", help="Only those that stand so."),
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List coordinations, oldest first: yours, or all if you see everything."""
    given = {"coordinator": coordinator, "state": state, "limit": limit, "cursor": cursor}

    def show(answer: dict[str, Any]) -> None:
        items = [_flat(each) for each in answer["items"]]
        output.page({**answer, "items": items}, BRIEF, "no coordinations")

    here.tell("coordination_list", given, show)


def show_end(coordination: dict[str, Any]) -> None:
    """Show what came of a coordination."""
    row = _flat(coordination)
    output.record({key: row[key] for key in BRIEF})
    _result(coordination)


def _flat(coordination: dict[str, Any]) -> dict[str, Any]:
    """Give a coordination as one row: names for agents, and no long texts."""
    return {
        "coordination_id": coordination["coordination_id"],
        "coordinator": coordination["coordinator"]["name"],
        "participants": [each["name"] for each in coordination["participants"]],
        "kind": coordination["rules"]["kind"],
        "state": coordination["state"],
        "reason": coordination["reason"],
        "outcome": coordination["outcome"],
        "created_at": coordination["created_at"],
        "ended_at": coordination["ended_at"],
    }


def _said(step: dict[str, Any]) -> str:
    """Give the little that a table has room for of what came of a step."""
    if step["error"]:
        return str(step["error"]["message"])
    if step["vote"]:
        return f"{step['vote']['vote']}: {step['vote']['reason']}"
    return str(step["answer"] or "")[:_SAID_MOST]


def _result(coordination: dict[str, Any]) -> None:
    if coordination["dissent"]:
        output.line("")
        output.table(_DISSENT, coordination["dissent"])
    if coordination["result"] is not None:
        output.line("")
        output.line(coordination["result"])
