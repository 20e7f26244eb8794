"""`node`: the machines of a cluster."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import execs, failure, output, values
from microvm_orchestrator.cli.cluster import ClusterRef
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.operation import WaitS, follow

app = typer.Typer(help="Nodes: the machines of a cluster.")

_NODE = ("name", "role", "state", "reachable", "reason")

NodeName = Annotated[
    str, typer.Argument(metavar="NODE", help="The node's name.", show_default=False)
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- COMMAND...]", help="A program and its words, behind --.", show_default=False
    ),
]
Script = Annotated[
    str | None,
    typer.Option("--script", metavar="TEXT", help="Instead of words: run by /bin/sh -c."),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env", "-e", metavar="K=V", help="A variable, over the topology's; may be repeated."
    ),
]
Cwd = Annotated[
    str | None, typer.Option("--cwd", metavar="PATH", help="Where it runs; by default at home.")
]
User = Annotated[
    str | None,
    typer.Option("--user", metavar="USER", help="Who it runs as; by default the topology's."),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout-s", metavar="SECONDS", help="When it is ended; 30 by default."),
]
OutputCap = Annotated[
    int | None,
    typer.Option("--output-cap", metavar="BYTES", help="How much of each channel to show."),
]


@command(app, "exec", example="node exec example-3node worker-0 -- uname -a")
def exec_(
    here: Session,
    cluster: ClusterRef,
    node: NodeName,
    argv: Words = None,
    script: Script = None,
    stdin: Annotated[
        str | None,
        typer.Option("--stdin", metavar="FILE", help="Its input; - is standard input."),
    ] = None,
    env: Env = None,
    cwd: Cwd = None,
    user: User = None,
    timeout_s: Timeout = None,
    output_cap: OutputCap = None,
    exec_id: Annotated[
        str | None,
        typer.Option("--exec-id", metavar="ID", help="Its id: begun at most once under it."),
    ] = None,
) -> int:
    """Run a command in a node, show what it said, and exit as it did.

    That is with 128+N after signal N, and with 124 when its time was up. A terminal, and input as
    it comes, are offered by `machine exec CLUSTER.NODE`.
    """
    given = {
        **_command(argv, script, env, cwd, user, timeout_s, output_cap),
        "cluster": cluster,
        "node": node,
        "stdin": None if stdin is None else values.content(stdin),
        "exec_id": exec_id,
    }
    answer = here.client.call("node_exec", given)
    here.give(answer, execs.show)
    return execs.status_of(answer.value)


@command(
    app,
    "exec-all",
    example="node exec-all example-3node -- uname -r\n"
    "node exec-all example-3node --node worker-0 --node client-0 --any --script 'df -h /'",
)
def exec_all(
    here: Session,
    cluster: ClusterRef,
    argv: Words = None,
    nodes: Annotated[
        list[str] | None,
        typer.Option("--node", metavar="NODE", help="Only in this one; may be repeated."),
    ] = None,
    script: Script = None,
    env: Env = None,
    cwd: Cwd = None,
    user: User = None,
    timeout_s: Timeout = None,
    output_cap: OutputCap = None,
    require_all: Annotated[
        bool | None,
        typer.Option(
            "--require-all/--any",
            help="Begin it nowhere unless all of them run, which is the default.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Run a command in several nodes at once; exit with 0 if it did so in all of them, else 1."""
    given = {
        **_command(argv, script, env, cwd, user, timeout_s, output_cap),
        "cluster": cluster,
        "nodes": nodes or None,
        "require_all": require_all,
    }
    answer = here.client.call("node_exec_all", given)
    here.give(answer, _show_all)
    return failure.OK if answer.value["all_succeeded"] else 1


def _show_all(answer: dict[str, Any]) -> None:
    for name, result in answer["results"].items():
        ran = result["ran"]
        if ran is None:
            failure.say(f"{name}: {result['error']['message']}")
            continue
        for channel in ("stdout", "stderr"):
            for line in ran[channel].splitlines():
                execs.write(channel, f"{name}: {line}\n", None)
        if ran["exit_code"] != 0:
            failure.say(f"{name}: {_ended(ran)}")


def _ended(ran: dict[str, Any]) -> str:
    if ran["timed_out"]:
        return "its time was up"
    if ran["signal"] is not None:
        return f"it was ended by signal {ran['signal']}"
    return f"it exited with {ran['exit_code']}"


@command(
    app,
    "crash",
    example="node crash example-3node worker-0\nnode crash example-3node worker-0 --no-restart",
)
def crash(
    here: Session,
    cluster: ClusterRef,
    node: NodeName,
    restart: Annotated[
        bool | None,
        typer.Option(
            "--restart/--no-restart",
            help="Boot it again, which is the default.",
            show_default=False,
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """End a node as a power cut would, and boot it again."""
    given = {"cluster": cluster, "node": node, "restart": restart}
    return follow(here, "node_crash", given, wait_s, lambda told: output.table(_NODE, [told]))


def _command(
    argv: list[str] | None,
    script: str | None,
    env: list[str] | None,
    cwd: str | None,
    user: str | None,
    timeout_s: float | None,
    output_cap: int | None,
) -> dict[str, object]:
    return {
        "argv": argv or None,
        "script": script,
        "env": values.pairs(env, "--env"),
        "cwd": cwd,
        "user": user,
        "timeout_s": timeout_s,
        "output_cap": output_cap,
    }
