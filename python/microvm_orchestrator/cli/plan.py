"""`plan`: task files read here, planned by the daemon, and submitted as a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from microvm_orchestrator import errors
from microvm_orchestrator.cli import output, values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.failure import say
from microvm_orchestrator.cli.options import Capabilities, Group, IdempotencyKey, Labels
from microvm_orchestrator.cli.spec import Priority, Role

app = typer.Typer(help="Plans: tasks read from files, in waves that can be done side by side.")

_COLUMNS = ("wave", "key", "title", "after", "files")
_TITLE = 48
# What a plan has besides its tasks, and nobody has to give.
_TOLD = ("waves", "skipped", "warnings")
_STDIN = "stdin"

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="Markdown, or one plan as `plan show --json` prints it, if its name ends in .json; - "
        "is standard input, a plan if it begins with {.",
        show_default=False,
    ),
]
InferFiles = Annotated[
    bool | None,
    typer.Option(
        "--infer-files",
        help="Take the paths that a task's text mentions for its files too.",
        show_default=False,
    ),
]


@command(
    app,
    "show",
    example="plan show TODO.md\nplan show tasks/*.md --infer-files\nplan show TODO.md --json",
)
def show(here: Session, file: Files, infer_files: InferFiles = None) -> None:
    """Read task files, and tell in which order and which waves their tasks can be done.

    A task is a heading `## Task: title`; in a file without any, each heading of the level that
    repeats with text below it; else each item of a list. Tasks whose files overlap are put one
    after the other. Nothing is submitted.
    """
    given = _read(file)
    asked = {name: given[name] for name in ("documents", "tasks") if name in given}
    here.tell("plan_tasks", _chosen(asked, infer_files=infer_files), _show_plan)


@command(
    app,
    "submit",
    example="""
plan submit TODO.md --group release --repo site
plan submit plan.json --label team=web --priority high
""",
)
def submit(
    here: Session,
    file: Files,
    group: Group = None,
    repo: Annotated[
        str | None,
        typer.Option(
            "--repo", metavar="ALIAS", help="The repository of tasks that name none themselves."
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="IMAGE", help="What their machines boot."),
    ] = None,
    kind: Annotated[
        Literal["agent", "script", "command", "manual"] | None,
        typer.Option(
            "--kind",
            help="Who does tasks that say nothing: by default an agent if there is a repository, "
            "else a worker that claims them.",
        ),
    ] = None,
    labels: Labels = None,
    priority: Priority = None,
    capabilities: Capabilities = None,
    role: Role = None,
    infer_files: InferFiles = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Submit the tasks of files, or of a plan, as a graph: all of them or none.

    What was declared to come first must succeed; what shares files must be over.
    """
    given = _chosen(
        _read(file),
        group=group,
        repo=repo,
        image=image,
        kind=kind,
        labels=values.pairs(labels, "--label"),
        priority=values.priority(priority),
        capabilities=capabilities,
        role=role,
        infer_files=infer_files,
        idempotency_key=idempotency_key,
    )
    here.tell("plan_submit", given, _show_submitted)


def _chosen(given: dict[str, Any], **options: object) -> dict[str, Any]:
    return {**given, **{name: value for name, value in options.items() if value is not None}}


def _read(files: list[str]) -> dict[str, Any]:
    """Read files into the fields of a request. Raises: InvalidInput."""
    texts = [(file, values.text(file if file == values.STDIN else f"@{file}")) for file in files]
    plans = [
        file
        for file, text in texts
        if file.endswith(".json") or (file == values.STDIN and (text or "").lstrip()[:1] == "{")
    ]
    if not plans:
        return {"documents": _documents(texts)}
    if len(files) > 1:
        raise errors.InvalidInput(f"{plans[0]} is a plan, and goes alone")
    found = values.parse(texts[0][1] or "", files[0])
    if isinstance(found, list):
        return {"tasks": found}
    if not isinstance(found, dict):
        raise errors.InvalidInput(f"{files[0]} holds no plan")
    return {name: value for name, value in values.merged(found, {}).items() if name not in _TOLD}


def _documents(texts: list[tuple[str, str | None]]) -> list[dict[str, str]]:
    """Give each text the name of its file, with folders only where they tell two apart."""
    short = [_STDIN if file == values.STDIN else Path(file).name for file, _ in texts]
    names = short if len({*short}) == len(short) else [file for file, _ in texts]
    return [
        {"name": name, "text": text or ""} for name, (_, text) in zip(names, texts, strict=True)
    ]


def _show_plan(answer: dict[str, Any]) -> None:
    rows = [
        {
            **task,
            "title": _short(task["title"]),
            "after": "; ".join(map(_edge, task["depends_on"])),
            "files": [*task["files"], *(f"{path}?" for path in task["proposed_files"])],
        }
        for task in sorted(answer["tasks"], key=lambda task: task["wave"])
    ]
    if rows:
        output.table(_COLUMNS, rows)
    _tell(answer)


def _show_submitted(answer: dict[str, Any]) -> None:
    waves = {key: number for number, wave in enumerate(answer["waves"], 1) for key in wave}
    rows = [{**task, "wave": waves[task["key"]]} for task in answer["tasks"]]
    output.table(("wave", "key", "task_id", "state"), sorted(rows, key=lambda task: task["wave"]))
    _tell(answer)


def _edge(edge: dict[str, Any]) -> str:
    return f"{edge['task']} ({edge['because']})" if edge["why"] == "overlap" else edge["task"]


def _short(title: str) -> str:
    return title if len(title) <= _TITLE else f"{title[: _TITLE - 1]}…"


def _tell(answer: dict[str, Any]) -> None:
    """Say aside what is not part of the plan."""
    for task in answer["skipped"]:
        say(f"done already: {task['title']} ({task['document']} line {task['line']})")
    for warning in answer["warnings"]:
        say(warning)
