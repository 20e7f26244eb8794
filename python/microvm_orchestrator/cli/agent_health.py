"""`agent metrics`: how agents get on.

Above sits the program; below, the calls of agents.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import output
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
