"""What a receiver of jobs is sent for an event: how the task that it tells of stands now.

It is looked up when it is sent, with the sight of the webhook's owner. A job that was deleted
meanwhile has only its id left. Above are the outboxes; below, the store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.model import job
from microvm_orchestrator.model.task import FINISHED
from microvm_orchestrator.store.questions import OneTask
from microvm_orchestrator.store.runs import last_run

if TYPE_CHECKING:
    from pydantic import JsonValue

    from microvm_orchestrator.model.event import Event
    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.store.base import Store

# What a run has said by now on standard output and on standard error, up to a bound.
Said = Callable[[str], Awaitable[tuple[str, str]]]


async def silent(run_id: str) -> tuple[str, str]:
    """Know nothing of what runs say."""
    del run_id
    return "", ""


async def payload_of(event: Event, store: Store, reader: Actor, said: Said) -> dict[str, JsonValue]:
    try:
        task = await store.query(OneTask(event.subject), reader)
    except errors.NotFound:
        return {"job_id": event.subject, "progress": event.kind}
    run = await last_run(store, task, reader)
    if task.state not in FINISHED:
        return job.status_payload(task, run, _message(event))
    output, complaints = ("", "") if run is None else await said(run.run_id)
    return job.complete_payload(task, run, output, complaints)


def _message(event: Event) -> str:
    match event.body:
        case {"progress": {"message": str(message)}}:
            return message
        case _:
            return ""
