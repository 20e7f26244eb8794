"""`group`: groups of tasks as wholes."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import output, values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import Cursor, GroupName, Labels, Limit, Reason
from microvm_orchestrator.cli.task import show_changed

app = typer.Typer(help="Groups of tasks: look at them, and change all their tasks at once.")

STATUS = ("group", "state", "total", "fraction_done", "counts", "created_at")
_TASK_ID = re.compile(r"\bt_[0-9a-z]{26}\b")
TASK = ("task_id", "key", "state", "worker", "depends_on", "title")


@command(app, "list", example="group list --limit 200")
def list_(here: Session, limit: Limit = None, cursor: Cursor = None) -> None:
    """List the groups of tasks, each with its state and counts."""
    given = {"limit": limit, "cursor": cursor}
    here.tell("group_list", given, lambda answer: output.page(answer, STATUS, "no groups"))


@command(app, "get", example="group get release")
def get(here: Session, group: GroupName) -> None:
    """Look at a group: its state, how many of its tasks stand where, how much is done."""
    here.tell("group_get", {"group": group})


@command(app, "tasks", example="group tasks release --json")
def tasks(here: Session, group: GroupName, limit: Limit = None, cursor: Cursor = None) -> None:
    """Look at all tasks of a group with their dependencies: the graph."""
    given = {"group": group, "limit": limit, "cursor": cursor}
    here.tell("group_tasks", given, _show_tasks)


def _show_tasks(answer: dict[str, Any]) -> None:
    """Show the graph with the names its author gave, where there are some on this page."""
    keys = {task["task_id"]: task["key"] or task["task_id"] for task in answer["items"]}
    items = [
        {**task, "depends_on": _named(output.cell("depends_on", task["depends_on"]), keys)}
        for task in answer["items"]
    ]
    output.page({**answer, "items": items}, TASK, "no tasks")


def _named(text: str, keys: dict[str, str]) -> str:
    return _TASK_ID.sub(lambda found: keys.get(found[0], found[0]), text)


@command(app, "report", example="group report release")
def report(here: Session, group: GroupName) -> None:
    """Find out where a group's time went: critical path, parallelism, bottlenecks."""
    here.tell("group_report", {"group": group})


@command(app, "cancel", example="group cancel release --reason 'not today' --label team=web")
def cancel(here: Session, group: GroupName, labels: Labels = None, reason: Reason = None) -> None:
    """Cancel every unfinished task of a group, or those with all of these labels."""
    given = {"group": group, "labels": values.pairs(labels, "--label"), "reason": reason}
    here.tell("group_cancel", given, show_changed)


@command(app, "retry", example="group retry release")
def retry(here: Session, group: GroupName, labels: Labels = None) -> None:
    """Try every failed or cancelled task of a group anew, or those with all of these labels."""
    given = {"group": group, "labels": values.pairs(labels, "--label")}
    here.tell("group_retry", given, show_changed)


@command(app, "prioritize", example="group prioritize release urgent")
def prioritize(
    here: Session,
    group: GroupName,
    priority: Annotated[
        str,
        typer.Argument(
            metavar="LEVEL|N",
            help="low, normal, high, urgent, or -1000 to 1000.",
            show_default=False,
        ),
    ],
    labels: Labels = None,
) -> None:
    """Set the priority of every unfinished task of a group, or of those with these labels."""
    given = {
        "group": group,
        "priority": values.priority(priority),
        "labels": values.pairs(labels, "--label"),
    }
    here.tell("group_prioritize", given, show_changed)
