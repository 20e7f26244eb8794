"""`task`: submit, look at, wait for and change tasks. What a worker says is in work.py."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from microvm_orchestrator import places
from microvm_orchestrator.cli import budget, failure, output, spec, values, watch, work
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.journal import event_line
from microvm_orchestrator.cli.options import (
    Cascade,
    Cursor,
    Group,
    IdempotencyKey,
    KeyGroup,
    Labels,
    Limit,
    Reason,
    TaskId,
    complete_group,
    complete_worker,
)

app = typer.Typer(help="Tasks: submit, look at, wait for and change them; claim and end them.")
app.add_typer(work.app)
app.add_typer(budget.app)

BRIEF = ("task_id", "key", "group", "state", "priority", "worker", "progress", "title")
RUN = ("attempt", "worker", "state", "started_at", "finished_at", "error")
# One request waits no longer, so that a broken connection is noticed and ^C is quick.
SLICE_S = 300.0
ENDS = {
    "done": failure.OK,
    "failed": failure.TASK_FAILED,
    "cancelled": failure.TASK_CANCELLED,
}


def show_task(task: dict[str, Any]) -> None:
    output.record(task, title=task["title"] or task["key"] or task["task_id"])


def show_changed(answer: dict[str, Any]) -> None:
    for task_id in answer["task_ids"]:
        output.line(task_id)
    failure.say(f"{len(answer['task_ids'])} changed")


@command(
    app,
    "submit",
    example="""
task submit 'Build the site' --key build --capability node --priority high
task submit Deploy --key deploy --depends-on build --depends-on 'tests?failed==0'
task submit --key scan --input '{"path": "src"}' --label team=web --retry 3
""",
)
def submit(
    here: Session,
    title: spec.Title = None,
    key: spec.Key = None,
    group: Group = None,
    description: spec.Description = None,
    input: spec.Input = None,  # noqa: A002 - the field's name
    run: spec.Run = None,
    depends_on: spec.DependsOn = None,
    on_unmet: spec.OnUnmet = None,
    priority: spec.Priority = None,
    labels: Labels = None,
    capabilities: spec.Capabilities = None,
    role: spec.Role = None,
    timeout_s: spec.TimeoutS = None,
    lease_s: spec.LeaseS = None,
    retry: spec.Retry = None,
    on_expiry: spec.OnExpiry = None,
    max_expiries: spec.MaxExpiries = None,
    not_before: spec.NotBefore = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Submit one task.

    It becomes ready when what it depends on is met, and is then claimed by a worker that has its
    role and capabilities. Several that belong together: `graph submit`.
    """
    given = spec.fields(
        title=title,
        key=key,
        group=group,
        description=description,
        input=input,
        run=run,
        depends_on=depends_on,
        on_unmet=on_unmet,
        priority=priority,
        labels=labels,
        capabilities=capabilities,
        role=role,
        timeout_s=timeout_s,
        lease_s=lease_s,
        retry=retry,
        on_expiry=on_expiry,
        max_expiries=max_expiries,
        not_before=not_before,
        idempotency_key=idempotency_key,
    )
    here.tell("task_submit", given)


@command(app, "get", example="task get build\ntask get t_01k6vq... --json")
def get(here: Session, task_id: TaskId, group: KeyGroup = None) -> None:
    """Look at one task: state, what it waits for, who has it, result, error."""
    here.tell("task_get", {"task_id": task_id, "group": group}, show_task)


class State(StrEnum):
    """Where a task stands, as a filter."""

    BLOCKED = "blocked"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@command(
    app,
    "list",
    example="task list --state ready --state running --label team=web\ntask list --json",
)
def list_(
    here: Session,
    state: Annotated[
        list[State] | None,
        typer.Option("--state", help="Only tasks in this state; may be repeated."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group", metavar="GROUP", help="Only this group.", autocompletion=complete_group
        ),
    ] = None,
    labels: Labels = None,
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="NAME", help="Only what they submitted.")
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(
            "--worker",
            metavar="NAME",
            help="Only what this worker has or had.",
            autocompletion=complete_worker,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="TEXT", help="Only where it occurs in title or key."),
    ] = None,
    newest_first: Annotated[
        bool | None, typer.Option("--newest-first", help="List them the other way round.")
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List tasks, oldest first; several filters must all match."""
    given = {
        "state": state,
        "group": group,
        "labels": values.pairs(labels, "--label"),
        "owner": owner,
        "worker": worker,
        "text": text,
        "newest_first": newest_first,
        "limit": limit,
        "cursor": cursor,
    }
    here.tell("task_list", given, lambda answer: output.page(answer, BRIEF, "no such tasks"))


@command(app, "wait", example="task wait build && echo built\ntask wait deploy --timeout-s 600")
def wait(
    here: Session,
    task_id: TaskId,
    group: KeyGroup = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s",
            metavar="SECONDS",
            help="How long to wait at the most; without it, as long as it takes.",
        ),
    ] = None,
) -> int:
    """Wait until a task has finished, and say how by the exit status.

    0 done, 8 failed, 9 cancelled, 124 not finished in time. The task goes on whether or not anybody
    waits, and waiting goes on through a restart of the daemon.
    """
    started = time.monotonic()
    ask, left = here.client.call, timeout_s
    try:
        while True:
            patience = SLICE_S if left is None else min(left, SLICE_S)
            given = {"task_id": task_id, "group": group, "timeout_s": patience}
            answer = ask("task_wait", given)
            if timeout_s is not None:
                left = timeout_s - (time.monotonic() - started)
            if answer.value["finished"] or (left is not None and left <= 0):
                break
            ask = here.client.call_through_restarts
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(
            "nothing was cancelled; to go on waiting: "
            f"{places.NAME} task wait {task_id}{f' --group {group}' if group else ''}"
        )
        raise
    here.give(answer, lambda found: show_task(found["task"]))
    task = answer.value["task"]
    if not answer.value["finished"]:
        failure.say(f"still {task['state']}")
        return failure.TIMED_OUT
    return ENDS[task["state"]]


@command(app, "watch", example="task watch --group release\ntask watch build --group release")
def watch_(
    here: Session,
    task_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[TASK]",
            help="Only this task: its id, or its key in the group.",
            show_default=False,
        ),
    ] = None,
    group: Group = None,
) -> int:
    """Watch a group of tasks, or one, until all have finished.

    On a terminal the graph is drawn and kept up to date; elsewhere each change is a line, and with
    --json an event. The exit status is that of `task wait`: 0 all done, 8 one failed, 9 cancelled.
    """
    return watch.watch(here.client, task_id, group, as_json=here.json)


@command(app, "history", example="task history build --limit 200")
def history(
    here: Session,
    task_id: TaskId,
    group: KeyGroup = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """Everything that happened to a task, oldest first, as far back as events are kept."""
    given = {"task_id": task_id, "group": group, "limit": limit, "cursor": cursor}
    here.tell("task_history", given, _show_history)


def _show_history(answer: dict[str, Any]) -> None:
    for event in answer["items"]:
        output.line(event_line(event))
    output.page({**answer, "items": ()}, (), "" if answer["items"] else "no events")


@command(app, "runs", example="task runs build")
def runs(
    here: Session,
    task_id: TaskId,
    group: KeyGroup = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List the attempts at a task: who, when, and how each ended."""
    given = {"task_id": task_id, "group": group, "limit": limit, "cursor": cursor}
    here.tell("task_runs", given, lambda answer: output.page(answer, RUN, "not attempted yet"))


@command(app, "cancel", example="task cancel build --reason 'no longer needed' --cascade")
def cancel(
    here: Session,
    task_id: TaskId,
    group: KeyGroup = None,
    reason: Reason = None,
    cascade: Cascade = None,
) -> None:
    """Cancel an unfinished task.

    A worker that holds it learns so at its next heartbeat, and its late result is refused.
    """
    given = {"task_id": task_id, "group": group, "reason": reason, "cascade": cascade}
    here.tell("task_cancel", given, show_changed)


@command(app, "retry", example="task retry deploy --upstream")
def retry_(
    here: Session,
    task_id: TaskId,
    group: KeyGroup = None,
    upstream: Annotated[
        bool | None,
        typer.Option("--upstream", help="Also the failed and cancelled tasks it depends on."),
    ] = None,
) -> None:
    """Try a failed or cancelled task anew, and with it what was given up because of it."""
    given = {"task_id": task_id, "group": group, "upstream": upstream}
    here.tell("task_retry", given, show_changed)


@command(
    app,
    "update",
    example="""
task update deploy --priority urgent --depends-on build --depends-on lint
task update deploy --changes '{"depends_on": [], "not_before": null}'
""",
)
def update(
    here: Session,
    task_id: TaskId,
    group: KeyGroup = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="What it is called.")
    ] = None,
    description: spec.Description = None,
    input: spec.Input = None,  # noqa: A002 - the field's name
    run: spec.Run = None,
    depends_on: spec.DependsOn = None,
    on_unmet: spec.OnUnmet = None,
    priority: spec.Priority = None,
    labels: Labels = None,
    capabilities: spec.Capabilities = None,
    role: spec.Role = None,
    timeout_s: spec.TimeoutS = None,
    lease_s: spec.LeaseS = None,
    retry: spec.Retry = None,
    on_expiry: spec.OnExpiry = None,
    max_expiries: spec.MaxExpiries = None,
    not_before: spec.NotBefore = None,
    changes: Annotated[
        str | None,
        typer.Option(
            "--changes",
            metavar="JSON|@FILE|-",
            help="New values of fields, as an object; the only way to empty one.",
        ),
    ] = None,
    expect_version: Annotated[
        int | None,
        typer.Option(
            "--expect-version",
            metavar="N",
            help="Refuse if it has changed since this version of it was read.",
        ),
    ] = None,
) -> None:
    """Change a task that nobody has claimed yet; what is left out stays as it is.

    A list or labels that are given replace the old ones as a whole.
    """
    options = spec.fields(
        title=title,
        description=description,
        input=input,
        run=run,
        depends_on=depends_on,
        on_unmet=on_unmet,
        priority=priority,
        labels=labels,
        capabilities=capabilities,
        role=role,
        timeout_s=timeout_s,
        lease_s=lease_s,
        retry=retry,
        on_expiry=on_expiry,
        max_expiries=max_expiries,
        not_before=not_before,
    )
    named: Any = {} if changes is None else values.json_value(changes, "--changes")
    chosen = {name: value for name, value in options.items() if value is not None}
    given = {
        "task_id": task_id,
        "group": group,
        "changes": values.merged(named, chosen),
        "expect_version": expect_version,
    }
    here.tell("task_update", given, show_task)


@command(app, "delete", example="task delete scratch --cascade")
def delete(
    here: Session,
    task_id: TaskId,
    group: KeyGroup = None,
    cascade: Cascade = None,
    drop_unmerged: Annotated[
        bool | None,
        typer.Option(
            "--drop-unmerged",
            help="Even if commits that were not merged are lost, or a rest.patch.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Forget a task that is not running, with the record, output and artifacts of its runs.

    Refused while other tasks depend on it, unless with --cascade, which forgets these too; and
    while commits of a run are not merged, unless with --drop-unmerged, which loses them.
    """
    given = {
        "task_id": task_id,
        "group": group,
        "cascade": cascade,
        "drop_unmerged": drop_unmerged,
    }
    here.tell("task_delete", given, show_changed)
