"""`team`: agents that belong together, spawned of a template and set to work on one task."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Unpack

import typer

from microvm_orchestrator.cli import agent_options, output, values
from microvm_orchestrator.cli.agent import BRIEF as OF_AGENTS
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.coordination import show_end
from microvm_orchestrator.cli.operation import WaitS, follow
from microvm_orchestrator.cli.options import complete_agent, complete_team

app = typer.Typer(help="Teams: agents that belong together, and work on one task.")

BRIEF = ("name", "source", "members", "aliases", "description")
_BROKEN = ("file", "reason")
_MEMBERS = ("name", "role", "purpose")

TeamRef = Annotated[
    str,
    typer.Argument(
        metavar="TEAM",
        help="The template's name, or an alias of it.",
        autocompletion=complete_team,
        show_default=False,
    ),
]


@command(app, "list", example="team list")
def list_(here: Session) -> None:
    """List the templates that ship, and those of the folder that agents.teams_dir names."""
    here.tell("team_list", {}, _show_list)


def _show_list(answer: dict[str, Any]) -> None:
    rows = [{**each, "members": 1 + len(each["members"])} for each in answer["items"]]
    output.table(BRIEF, rows)
    if answer["broken"]:
        output.line("")
        output.table(_BROKEN, answer["broken"])


@command(app, "get", example="team get software_engineering")
def get(here: Session, name: TeamRef) -> None:
    """Look at a template: who is in it, and how they work together."""

    def show(answer: dict[str, Any]) -> None:
        output.record({key: answer[key] for key in ("name", "source", "aliases", "description")})
        output.line("")
        output.table(_MEMBERS, [answer["lead"], *answer["members"]])
        output.line("")
        output.line(answer["prompt"])

    here.tell("team_get", {"name": name}, show)


@command(
    app,
    "spawn",
    example="team spawn software_engineering --prefix shop --image claude --task @wish.md\n"
    "team spawn research --image claude --tokens 200000",
)
def spawn(
    here: Session,
    template: TeamRef,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TEXT|@FILE|-", help="What the lead is told."),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix",
            metavar="NAME",
            help="With which their names begin; else the name of the template.",
        ),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            "--parent",
            metavar="AGENT",
            help="The agent that the lead belongs to, and ends with.",
            autocompletion=complete_agent,
        ),
    ] = None,
    wait_s: WaitS = None,
    **wish: Unpack[agent_options.Wish],
) -> int:
    """Spawn a team: a lead, and members that belong to it, each in a machine of its own.

    All of them come to be, or none. What is said of a budget holds for each; a budget of a tree is
    the lead's, and so of them all. `agent end LEAD --cascade` ends them together.
    """
    given = {
        "template": template,
        "task": values.text(task),
        "prefix": prefix,
        "parent": parent,
        **agent_options.said(wish),
    }
    return follow(here, "team_spawn", given, wait_s, _show_team)


def _show_team(team: dict[str, Any]) -> None:
    output.table(OF_AGENTS, [team["lead"], *team["members"]])


@command(
    app,
    "coordinate",
    example="team coordinate lead 'Make a page for orders.' --kind hierarchical\n"
    "team coordinate lead @question.md --kind consensus --with ada --with bob --quorum 2",
)
def coordinate(
    here: Session,
    coordinator: Annotated[
        str,
        typer.Argument(
            metavar="AGENT",
            help="Who coordinates: a name or id.",
            autocompletion=complete_agent,
            show_default=False,
        ),
    ],
    task: Annotated[
        str,
        typer.Argument(metavar="TEXT|@FILE|-", help="What they work on.", show_default=False),
    ],
    participants: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="AGENT",
            help="Who takes part, in this order; else all who belong to the coordinator.",
            autocompletion=complete_agent,
        ),
    ] = None,
    kind: Annotated[
        Literal["sequential", "parallel", "consensus", "hierarchical"] | None,
        typer.Option("--kind", help="How they work together; else sequential."),
    ] = None,
    proposal: Annotated[
        str | None,
        typer.Option(
            "--proposal",
            metavar="TEXT|@FILE|-",
            help="For a consensus: what is voted on first; else the coordinator proposes.",
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", metavar="N", help="Of votes, at most; 3.")
    ] = None,
    quorum: Annotated[
        int | None, typer.Option("--quorum", metavar="N", help="How many votes have to agree.")
    ] = None,
    quorum_share: Annotated[
        float | None,
        typer.Option("--quorum-share", metavar="SHARE", help="Instead: which share; 0.66."),
    ] = None,
    step_timeout_s: Annotated[
        float | None,
        typer.Option("--step-timeout-s", metavar="SECONDS", help="For one answer; 3600."),
    ] = None,
    *,
    ask_coordinator: Annotated[
        bool | None,
        typer.Option(
            "--ask-coordinator/--no-ask-coordinator",
            help="Whether the coordinator is asked anything.",
            show_default=False,
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Have several agents work together on a task, and show what came of it.

    It goes on whoever leaves; `coordination get` shows each step. `operation cancel` stops it.
    """
    given = {
        "coordinator": coordinator,
        "task": values.text(task),
        "participants": participants or None,
        "kind": kind,
        "proposal": values.text(proposal),
        "rounds": rounds,
        "quorum": quorum,
        "quorum_share": quorum_share,
        "step_timeout_s": step_timeout_s,
        "ask_coordinator": ask_coordinator,
    }
    return follow(here, "team_coordinate", given, wait_s, show_end)
