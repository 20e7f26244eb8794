"""`run`: agents, scripts and commands in machines of their own, and what came of them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from microvm_orchestrator import errors
from microvm_orchestrator.cli import budget, execs, output, review, run_result, values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.machine_exec import Words
from microvm_orchestrator.cli.options import (
    Cursor,
    DriverName,
    Group,
    IdempotencyKey,
    KeyGroup,
    Labels,
    Limit,
    TaskId,
)
from microvm_orchestrator.cli.spec import DependsOn, Key, Priority

app = typer.Typer(help="Runs: agents, scripts and commands in machines, and their commits.")
app.add_typer(review.app)

# What is no file of here.
_ARTIFACT = "artifact:"
BRIEF = ("run_id", "step", "repo_id", "tip", "started_at", "ended_at")


@command(
    app,
    "start",
    example="""
run start --repo site --prompt 'Fix the failing test in src/' --max-turns 40
run start --repo site --script 'make test && git commit -am done'
run start --repo site -- python3 -m pytest -q
""",
)
def start(
    here: Session,
    argv: Words = None,
    repo: Annotated[
        str | None,
        typer.Option("--repo", metavar="ALIAS", help="The registered repository it works on."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT|@FILE|-", help="What an agent is to do."),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option("--script", metavar="TEXT|@FILE|-", help="A text that an interpreter runs."),
    ] = None,
    interpreter: Annotated[
        list[str] | None,
        typer.Option("--interpreter", metavar="WORD", help="What runs it; /bin/sh by default."),
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="What it is called.")
    ] = None,
    key: Key = None,
    group: Group = None,
    depends_on: DependsOn = None,
    priority: Priority = None,
    labels: Labels = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="REF", help="The branch, tag or commit it starts from."),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="BRANCH", help="What its commits are merged into."),
    ] = None,
    uncommitted: Annotated[
        bool | None,
        typer.Option(
            "--uncommitted",
            help="Start from what is uncommitted in the work tree as well.",
            show_default=False,
        ),
    ] = None,
    merge: Annotated[
        Literal["auto", "squash", "branch", "review", "manual"] | None,
        typer.Option("--merge", help="What becomes of its commits; by default as the repo has it."),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="TEXT|@FILE|-",
            help="A shell text that what was merged must pass, before the branch moves.",
        ),
    ] = None,
    rest: Annotated[
        Literal["patch", "commit", "drop"] | None,
        typer.Option("--rest", help="What becomes of changes that it does not commit."),
    ] = None,
    artifacts: Annotated[
        list[str] | None,
        typer.Option(
            "--artifact",
            metavar="GLOB",
            help="Files to keep beside commits, as in dist/ or '**/*.xml'; may be repeated.",
        ),
    ] = None,
    driver: Annotated[
        DriverName | None,
        typer.Option("--driver", help="Which agent."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Which model it asks.")
    ] = None,
    system_prompt: Annotated[
        str | None,
        typer.Option("--system-prompt", metavar="TEXT|@FILE|-", help="Added to the agent's own."),
    ] = None,
    max_turns: Annotated[
        int | None, typer.Option("--max-turns", metavar="N", help="How many turns it may take.")
    ] = None,
    mcp_servers: Annotated[
        str | None,
        typer.Option(
            "--mcp-servers", metavar="JSON|@FILE|-", help="Further MCP servers for it, by name."
        ),
    ] = None,
    answer_schema: Annotated[
        str | None,
        typer.Option(
            "--answer-schema", metavar="JSON|@FILE|-", help="JSON Schema of the answer it gives."
        ),
    ] = None,
    wall_s: budget.WallS = None,
    cpu_s: budget.CpuS = None,
    tokens: budget.Tokens = None,
    cost_usd: budget.CostUsd = None,
    egress: Annotated[
        list[str] | None,
        typer.Option(
            "--egress", metavar="HOST", help="A host it may reach: HOST, HOST:PORT or *.DOMAIN."
        ),
    ] = None,
    credentials: Annotated[
        list[str] | None,
        typer.Option(
            "--credential", metavar="NAME", help="A key or secret it may use, by its name."
        ),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            metavar="PATH=FILE",
            help="A file of here that lies there, or artifact:TASK/NAME; may be repeated.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="K=V", help="A variable of its program; may be repeated."),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="What its machine boots.")
    ] = None,
    memory_mib: Annotated[
        int | None, typer.Option("--memory-mib", metavar="MIB", help="Its machine's memory.")
    ] = None,
    vcpus: Annotated[
        int | None, typer.Option("--vcpus", metavar="N", help="Its machine's processors.")
    ] = None,
    disk_mib: Annotated[
        int | None, typer.Option("--disk-mib", metavar="MIB", help="An empty disk of its own.")
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout-s", metavar="SECONDS", help="How long its program may take."),
    ] = None,
    devshell: Annotated[
        Literal["auto", "require", "never"] | None,
        typer.Option("--devshell", help="Whether it runs in the devShell of the flake."),
    ] = None,
    keep_machine: Annotated[
        bool | None,
        typer.Option(
            "--keep-machine", help="Leave the machine running afterwards.", show_default=False
        ),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Run an agent, a script or a command in a machine of its own, and get its commits merged.

    It says the task's id and returns at once. `task wait` waits for it, `run output` shows what it
    says meanwhile, `run get` what came of it.
    """
    given: dict[str, object] = {
        "argv": argv or None,
        "repo": repo,
        "prompt": values.text(prompt),
        "script": values.text(script),
        "interpreter": interpreter,
        "title": title,
        "key": key,
        "group": group,
        "depends_on": depends_on and [values.dependency(word) for word in depends_on],
        "priority": values.priority(priority),
        "labels": values.pairs(labels, "--label"),
        "base": base,
        "into": into,
        "uncommitted": uncommitted,
        "merge": merge,
        "check": values.text(check),
        "rest": rest,
        "artifacts": artifacts,
        "driver": driver,
        "model": model,
        "system_prompt": values.text(system_prompt),
        "max_turns": max_turns,
        "mcp_servers": values.mcp_servers(mcp_servers),
        "answer_schema": values.json_value(answer_schema, "--answer-schema"),
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "tokens": tokens,
        "cost_usd": cost_usd,
        "egress": egress,
        "credentials": credentials,
        "files": _files(files),
        "env": values.pairs(env, "--env"),
        "image": image,
        "memory_mib": memory_mib,
        "vcpus": vcpus,
        "disk_mib": disk_mib,
        "timeout_s": timeout_s,
        "devshell": devshell,
        "keep_machine": keep_machine,
        "idempotency_key": idempotency_key,
    }
    here.tell("run_start", given)


def _files(words: list[str] | None) -> list[dict[str, str]] | None:
    """Raises: InvalidInput."""
    if words is None:
        return None
    found: list[dict[str, str]] = []
    for path, name in (values.pairs(words, "--file") or {}).items():
        if name.startswith(_ARTIFACT):
            found.append({"path": path, "artifact": name.removeprefix(_ARTIFACT)})
            continue
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise errors.InvalidInput(f"cannot read {name}: {error.strerror}") from error
        found.append({"path": path, "base64": base64.b64encode(content).decode()})
    return found


@command(app, "get", example="run get build\nrun get t_01k6vq... --json")
def get(here: Session, task_id: TaskId, group: KeyGroup = None) -> None:
    """Look at the last run of a task: how far it is, what came of it, what was merged."""
    here.tell("run_get", {"task_id": task_id, "group": group}, run_result.show)


@command(app, "list", example="run list --state under_way")
def list_(
    here: Session,
    state: Annotated[
        Literal["under_way", "over"] | None, typer.Option("--state", help="Only these.")
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List runs, oldest first: yours, or all if you see everything."""
    given = {"state": state, "limit": limit, "cursor": cursor}
    here.tell("run_list", given, lambda answer: output.page(answer, BRIEF, "no runs"))


@command(app, "output", example="run output build\nrun output build --timeout-s 10")
def read(
    here: Session,
    task_id: TaskId,
    group: KeyGroup = None,
    offset: Annotated[
        int | None, typer.Option("--offset", metavar="N", help="Where to begin; 0 by default.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="BYTES", help="At most about so many bytes.")
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout-s", metavar="SECONDS", help="How long to wait where it is empty."),
    ] = None,
) -> None:
    """Read a part of what a run's program said, both channels where they belong."""
    given = {
        "task_id": task_id,
        "group": group,
        "offset": offset,
        "limit": limit,
        "timeout_s": timeout_s,
    }
    here.tell("run_output", given, _write)


def _write(answer: dict[str, Any]) -> None:
    for piece in answer["pieces"]:
        execs.write(piece["channel"], piece["text"], piece.get("base64"))


@command(app, "diff", example="run diff build | git apply --check")
def diff(
    here: Session,
    task_id: TaskId,
    group: KeyGroup = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="BYTES", help="At most so many bytes.")
    ] = None,
) -> None:
    """Show what a run's commits changed, as a patch."""
    given = {"task_id": task_id, "group": group, "limit": limit}
    here.tell("run_diff", given, lambda answer: execs.write("stdout", answer["patch"], None))
