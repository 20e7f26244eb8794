"""Options that say where an agent works, and where its commits go.

Above is the noun `agent`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from microvm_orchestrator.cli.options import complete_group, complete_repo

AgentRepo = Annotated[
    str | None,
    typer.Option(
        "--repo",
        metavar="REPO",
        help="The alias of the repository it works on.",
        autocompletion=complete_repo,
    ),
]
AgentBase = Annotated[
    str | None,
    typer.Option("--base", metavar="REF", help="The branch, tag or commit it starts from."),
]
AgentInto = Annotated[
    str | None,
    typer.Option("--into", metavar="BRANCH", help="What its commits are merged into."),
]
AgentBranch = Annotated[
    str | None,
    typer.Option("--branch", metavar="BRANCH", help="The branch of its own; else agents/NAME."),
]
AgentPolicy = Literal["auto", "squash", "branch", "review", "manual"]
AgentMerge = Annotated[
    AgentPolicy | None,
    typer.Option("--merge", help="What becomes of its commits; by default as the repo has it."),
]
AgentCheck = Annotated[
    str | None,
    typer.Option(
        "--check",
        metavar="TEXT|@FILE|-",
        help="A shell text that what was merged must pass, before the branch moves.",
    ),
]
AgentWorks = Annotated[
    bool,
    typer.Option("--works", help="It may do tasks, as a worker of its own.", show_default=False),
]
AgentGroups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="GROUP",
        help="With --works: tasks of this group only; may be repeated.",
        autocompletion=complete_group,
    ),
]
AgentCapabilities = Annotated[
    list[str] | None,
    typer.Option(
        "--capability", metavar="WORD", help="With --works: what it can do; may be repeated."
    ),
]
AgentRest = Annotated[
    Literal["commit", "drop"] | None,
    typer.Option(
        "--rest", help="What becomes of uncommitted changes when it ends; else as the repo has it."
    ),
]
