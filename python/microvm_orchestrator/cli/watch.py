"""A group of tasks, or one task, followed until all have finished.

The journal says what changed, and only that is asked for anew: nothing is polled. On a terminal
the graph is drawn (live.py), elsewhere each event is a line. Above sits `task watch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microvm_orchestrator import errors, places
from microvm_orchestrator.cli import failure, output
from microvm_orchestrator.cli.journal import event_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from microvm_orchestrator.cli.client import Client

Json = dict[str, Any]

DEFAULT_GROUP = "default"
FINISHED = {"done", "failed", "cancelled"}
# One request waits no longer, so that a broken connection is noticed.
SLICE_S = 300.0
# The largest page of a group; and past so many changed tasks, all of them are read at once.
PAGE = 1000
MANY = 50


class Watched:
    """The tasks that are watched, as they are known now."""

    def __init__(self, client: Client, task_id: str | None, group: str | None) -> None:
        self._client = client
        self.group = group or DEFAULT_GROUP
        self._reference = task_id
        self.tasks: dict[str, Json] = {}
        # First the place in the journal, then the tasks: nothing can happen in between unseen.
        self._cursor: str = client.call("event_wait", {"after": "now"}).value["cursor"]
        self._ask = client.call
        self._read_all()
        if not self.tasks:
            raise errors.NotFound(f"group {self.group} has no tasks that you can see")
        self._filter: Json = {"groups": [self.group]}
        if task_id is not None:
            self._filter = {"subjects": list(self.tasks)}
        self._ask = client.call_through_restarts

    @property
    def finished(self) -> bool:
        return all(task["state"] in FINISHED for task in self.tasks.values())

    @property
    def status(self) -> int:
        """The exit status that says how it ended: the worst of all."""
        states = {task["state"] for task in self.tasks.values()}
        if "failed" in states:
            return failure.TASK_FAILED
        return failure.TASK_CANCELLED if "cancelled" in states else failure.OK

    def changes(self) -> Iterator[list[Json]]:
        """Yield events as they come, the tasks brought up to date, until all have finished."""
        while not self.finished:
            given = {**self._filter, "after": self._cursor, "timeout_s": SLICE_S}
            answer = self._ask("event_wait", given).value
            self._cursor = answer["cursor"]
            if answer["events"]:
                self._apply({event["subject"] for event in answer["events"]})
                yield answer["events"]

    def _apply(self, changed: set[str]) -> None:
        if len(changed) > MANY:
            self._read_all()
            return
        for task_id in changed:
            try:
                self.tasks[task_id] = self._ask("task_get", {"task_id": task_id}).value
            except errors.NotFound:  # deleted
                self.tasks.pop(task_id, None)

    def _read_all(self) -> None:
        if self._reference is not None:
            given = {"task_id": self._reference, "group": self.group}
            task = self._ask("task_get", given).value
            self.tasks = {task["task_id"]: task}
            return
        self.tasks = {}
        cursor = None
        while True:
            given = {"group": self.group, "limit": PAGE, "cursor": cursor}
            page = self._ask("group_tasks", given).value
            self.tasks |= {task["task_id"]: task for task in page["items"]}
            cursor = page["next_cursor"]
            if cursor is None:
                return


def watch(client: Client, task_id: str | None, group: str | None, *, as_json: bool) -> int:
    """Follow until all have finished, and return the exit status that says how."""
    try:
        watched = Watched(client, task_id, group)
        if as_json:
            for events in watched.changes():
                for event in events:
                    output.emit_value(event)
        elif output.on_terminal():
            from microvm_orchestrator.cli.live import draw

            draw(watched)
        else:
            _write(watched)
    except KeyboardInterrupt as interrupt:
        words = [
            "task watch",
            *([task_id] if task_id else []),
            *(["--group", group] if group else []),
        ]
        interrupt.add_note(
            f"nothing was cancelled; to go on watching: {places.NAME} {' '.join(words)}"
        )
        raise
    return watched.status


def _write(watched: Watched) -> None:
    for task in watched.tasks.values():
        output.line(
            f"{task['state']:<10}  {task['key'] or task['task_id']}  {task['title']}".rstrip()
        )
    for events in watched.changes():
        for event in events:
            output.line(event_line(event))
