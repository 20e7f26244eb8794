"""What an agent is, where it lives and what it may take, as words of the command line.

Above are the commands of agents.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

import typer

from microvm_orchestrator.cli import values
from microvm_orchestrator.cli.options import DriverName

Supervise = Annotated[
    Literal["off", "watch", "act"] | None,
    typer.Option(
        "--supervise",
        help="What is done if it does not get on: nothing, events, help as well; else as "
        "`agents.supervise` says.",
    ),
]


class Being(TypedDict):
    """What an agent is, and where it lives."""

    driver: Annotated[
        DriverName | None,
        typer.Option("--driver", help="Which program it is; else claude."),
    ]
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="As the program names it.")
    ]
    mcp_servers: Annotated[
        str | None,
        typer.Option(
            "--mcp-servers", metavar="JSON", help="Further MCP servers: JSON, or @FILE, or -."
        ),
    ]
    max_turns: Annotated[
        int | None,
        typer.Option("--max-turns", metavar="N", help="Of the model, for one message."),
    ]
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="IMAGE", help="What the machine boots: name or digest."),
    ]
    memory_mib: Annotated[
        int | None, typer.Option("--memory-mib", metavar="MIB", help="The memory of the machine.")
    ]
    vcpus: Annotated[
        int | None, typer.Option("--vcpus", metavar="N", help="The processors of the machine.")
    ]
    disk_mib: Annotated[
        int | None,
        typer.Option(
            "--disk-mib", metavar="MIB", help="For the home and all that is written; 1024."
        ),
    ]
    egress: Annotated[
        list[str] | None,
        typer.Option(
            "--egress",
            metavar="HOST[:PORT]",
            help="A host that may be reached, or *.DOMAIN; may be repeated.",
        ),
    ]
    credentials: Annotated[
        list[str] | None,
        typer.Option(
            "--credential", metavar="NAME", help="A credential by its name; may be repeated."
        ),
    ]


class Budget(TypedDict):
    """What an agent may take."""

    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="N", help="Of model APIs, as many as it may ever take."),
    ]
    cost_usd: Annotated[
        float | None,
        typer.Option(
            "--cost-usd", metavar="USD", help="Of model APIs, as much as it may ever take."
        ),
    ]
    turns: Annotated[
        int | None, typer.Option("--turns", metavar="N", help="As many messages it may ever hear.")
    ]
    wall_s: Annotated[
        float | None,
        typer.Option("--wall-s", metavar="SECONDS", help="As long as its turns may take in all."),
    ]
    tree_tokens: Annotated[
        int | None,
        typer.Option("--tree-tokens", metavar="N", help="Tokens, by it and all below it together."),
    ]
    tree_cost_usd: Annotated[
        float | None,
        typer.Option(
            "--tree-cost-usd", metavar="USD", help="Cost, of it and all below it together."
        ),
    ]
    tree_turns: Annotated[
        int | None,
        typer.Option(
            "--tree-turns", metavar="N", help="Messages, by it and all below it together."
        ),
    ]
    tree_wall_s: Annotated[
        float | None,
        typer.Option(
            "--tree-wall-s",
            metavar="SECONDS",
            help="Time in turns, of it and all below it together.",
        ),
    ]
    at_limit: Annotated[
        Literal["pause", "end"] | None,
        typer.Option(
            "--at-limit",
            help="Hear nothing until it may take more, or end with all below it; pause.",
        ),
    ]
    warn_at: Annotated[
        list[float] | None,
        typer.Option(
            "--warn-at",
            metavar="SHARE",
            help="A share of each limit at which an event warns; 0.8. May be repeated.",
        ),
    ]


class Wish(Being, Budget):
    """All of that."""


def said(options: Budget) -> dict[str, Any]:
    """Give what was said of them, as the fields of a request. Raises: InvalidInput."""
    fields: dict[str, Any] = {name: value for name, value in options.items() if value != []}
    if "mcp_servers" in fields:
        fields["mcp_servers"] = values.mcp_servers(fields["mcp_servers"])
    return fields
