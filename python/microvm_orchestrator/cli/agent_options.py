"""What an agent is, where it lives and what it may take, as words of the command line.

Above are the commands of agents.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Driver = Annotated[
    Literal["claude", "codex", "opencode"] | None,
    typer.Option("--driver", help="Which program it is; else claude."),
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="As the program names it.")
]
McpServers = Annotated[
    str | None,
    typer.Option(
        "--mcp-servers", metavar="JSON", help="Further MCP servers: JSON, or @FILE, or -."
    ),
]
MaxTurns = Annotated[
    int | None,
    typer.Option("--max-turns", metavar="N", help="Of the model, for one message."),
]
Image = Annotated[
    str | None,
    typer.Option("--image", metavar="IMAGE", help="What the machine boots: name or digest."),
]
MemoryMib = Annotated[
    int | None, typer.Option("--memory-mib", metavar="MIB", help="The memory of the machine.")
]
Vcpus = Annotated[
    int | None, typer.Option("--vcpus", metavar="N", help="The processors of the machine.")
]
DiskMib = Annotated[
    int | None,
    typer.Option("--disk-mib", metavar="MIB", help="For the home and all that is written; 1024."),
]
Egress = Annotated[
    list[str] | None,
    typer.Option(
        "--egress",
        metavar="HOST[:PORT]",
        help="A host that may be reached, or *.DOMAIN; may be repeated.",
    ),
]
Credentials = Annotated[
    list[str] | None,
    typer.Option("--credential", metavar="NAME", help="A credential by its name; may be repeated."),
]
Tokens = Annotated[
    int | None,
    typer.Option("--tokens", metavar="N", help="Of model APIs, as many as it may ever take."),
]
CostUsd = Annotated[
    float | None,
    typer.Option("--cost-usd", metavar="USD", help="Of model APIs, as much as it may ever take."),
]
Turns = Annotated[
    int | None, typer.Option("--turns", metavar="N", help="As many messages it may ever hear.")
]
WallS = Annotated[
    float | None,
    typer.Option("--wall-s", metavar="SECONDS", help="As long as its turns may take in all."),
]
TreeTokens = Annotated[
    int | None,
    typer.Option("--tree-tokens", metavar="N", help="Tokens, by it and all below it together."),
]
TreeCostUsd = Annotated[
    float | None,
    typer.Option("--tree-cost-usd", metavar="USD", help="Cost, of it and all below it together."),
]
TreeTurns = Annotated[
    int | None,
    typer.Option("--tree-turns", metavar="N", help="Messages, by it and all below it together."),
]
TreeWallS = Annotated[
    float | None,
    typer.Option(
        "--tree-wall-s", metavar="SECONDS", help="Time in turns, of it and all below it together."
    ),
]
Supervise = Annotated[
    Literal["off", "watch", "act"] | None,
    typer.Option(
        "--supervise",
        help="What is done if it does not get on: nothing, events, help as well; else as "
        "`agents.supervise` says.",
    ),
]
AtLimit = Annotated[
    Literal["pause", "end"] | None,
    typer.Option(
        "--at-limit", help="Hear nothing until it may take more, or end with all below it; pause."
    ),
]
WarnAt = Annotated[
    list[float] | None,
    typer.Option(
        "--warn-at",
        metavar="SHARE",
        help="A share of each limit at which an event warns; 0.8. May be repeated.",
    ),
]
