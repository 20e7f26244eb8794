"""`agent`, how it gets on: figures, what is seen of it, and what is done about it.

Above sits the program; below, the calls of agents.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import agent_options, output
from microvm_orchestrator.cli.agent import AgentRef
from microvm_orchestrator.cli.agent_home import app
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import complete_agent

_COLUMNS = (
    *("name", "state", "health", "answered", "failed"),
    *("median_s", "p95_s", "tokens", "cost_usd"),
)

_OneOrAll = Annotated[
    str | None,
    typer.Argument(
        metavar="[AGENT]",
        help="Its name or id; else all that live.",
        autocompletion=complete_agent,
        show_default=False,
    ),
]


@command(app, "metrics", example="agent metrics\nagent metrics ada --json")
def metrics(here: Session, agent: _OneOrAll = None) -> None:
    """Read figures of agents: answers and failures, how long answers take, what was used, health.

    For Prometheus there is `/metrics` over HTTP.
    """

    def show(answer: dict[str, Any]) -> None:
        if agent is not None:
            output.record(answer["agents"][0])
            return
        totals: dict[str, Any] = answer["totals"]
        output.line(
            f"{totals['active']} of {totals['known']} agents live; "
            f"{totals['taken']['tokens']} tokens, {totals['taken']['cost_usd']:.2f} USD, "
            f"{totals['answered']} answered, {totals['failed']} failed"
        )
        if answer["agents"]:
            rows = [{**each, **each["response"], **each["taken"]} for each in answer["agents"]]
            output.table(_COLUMNS, rows)

    here.tell("agent_metrics", {"agent": agent}, show)


@command(app, "health", example="agent health ada")
def health(here: Session, agent: AgentRef) -> None:
    """Look how an agent gets on: what is seen of it, and what was done about it."""
    here.tell("agent_health", {"agent": agent}, output.record)


@command(app, "supervise", example="agent supervise ada --supervise act")
def supervise(here: Session, agent: AgentRef, supervise: agent_options.Supervise = None) -> None:
    """Say what is done about an agent that does not get on; without a word, as the host has it."""
    here.tell("agent_supervise", {"agent": agent, "supervise": supervise}, output.record)
