"""What follows from what: the one function that changes a task's state.

Pure, so that every engine of the store shares it: a store loads the rows a verb closes over,
asks here what they become, and writes the answer together with its event in one transaction.
The ripple to the tasks that depend on a finished one is decided here too, one edge at a time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, assert_never

from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.model.task import (
    FINISHED,
    On,
    OnExpiry,
    Retry,
    RunState,
    TaskState,
    Unmet,
)

TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.BLOCKED: frozenset({TaskState.READY, TaskState.CANCELLED, TaskState.FAILED}),
    TaskState.READY: frozenset({TaskState.RUNNING, TaskState.BLOCKED, TaskState.CANCELLED}),
    TaskState.RUNNING: frozenset(
        {
            TaskState.DONE,
            TaskState.FAILED,
            TaskState.CANCELLED,
            TaskState.READY,
            TaskState.BLOCKED,
        }
    ),
    TaskState.DONE: frozenset(),
    TaskState.FAILED: frozenset({TaskState.BLOCKED, TaskState.READY}),
    TaskState.CANCELLED: frozenset({TaskState.BLOCKED, TaskState.READY}),
}


class TaskRow(NamedTuple):
    """The narrow, often written part of a task.

    A tuple, because it is made from a row and compared with one several times in every verb.
    """

    seq: int
    id: str
    grp: str
    key: str
    class_id: int
    priority: int
    state: TaskState
    reason: str | None
    gates_left: int
    not_before: float | None
    attempt: int
    failures: int
    expiries: int
    worker: str | None
    holder: str | None
    lease_until: float | None
    deadline: float | None
    expires_at: float | None
    lease_s: float
    timeout_s: float | None
    on_unmet: Unmet
    policy: str
    created_at: float
    ready_at: float | None
    started_at: float | None
    finished_at: float | None
    parent: int | None
    version: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do when an attempt fails or its worker goes silent."""

    retry: Retry
    on_expiry: OnExpiry
    max_expiries: int

    def dump(self) -> str:
        return json.dumps(
            [self.retry.model_dump(), self.on_expiry, self.max_expiries], separators=(",", ":")
        )


@lru_cache(maxsize=1024)
def read_policy(text: str) -> Policy:
    retry, on_expiry, max_expiries = json.loads(text)
    return Policy(Retry(**retry), OnExpiry(on_expiry), max_expiries)


@dataclass(frozen=True, slots=True)
class Claim:
    worker: str
    holder: str
    lease_s: float | None


@dataclass(frozen=True, slots=True)
class Beat:
    lease_s: float | None


@dataclass(frozen=True, slots=True)
class Complete:
    pass


@dataclass(frozen=True, slots=True)
class Fail:
    retryable: bool


@dataclass(frozen=True, slots=True)
class Release:
    delay_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Expire:
    pass


@dataclass(frozen=True, slots=True)
class Open:
    """A gate was met, or the task fell due."""


@dataclass(frozen=True, slots=True)
class Shut:
    """A gate that was met is open again: an upstream task is tried anew."""


@dataclass(frozen=True, slots=True)
class Unmeetable:
    upstream: str
    upstream_state: TaskState


@dataclass(frozen=True, slots=True)
class Cancel:
    reason: str


@dataclass(frozen=True, slots=True)
class Again:
    """Try a failed or cancelled task anew."""


# How the reason begins of a task that was given up, or is stuck, because of another.
UNMET = "dependency unmet"

Verb = Claim | Beat | Complete | Fail | Release | Expire | Open | Shut | Unmeetable | Cancel | Again


class Step(NamedTuple):
    """A task after a verb, the event that tells of it, and what became of the attempt."""

    row: TaskRow
    event: str | None
    run: RunState | None = None


def transition(row: TaskRow, verb: Verb, now: float) -> Step:
    """The task after `verb`.

    Raises: StateForbids when the task's state does not allow the verb.
    """
    step = _after(row, verb, now)
    if step.row.state is not row.state and step.row.state not in TRANSITIONS[row.state]:
        raise AssertionError(f"{row.state} never becomes {step.row.state}")
    return step


def _after(row: TaskRow, verb: Verb, now: float) -> Step:
    match verb:
        case Claim(worker, holder, lease_s):
            _demand(row, "claimed", TaskState.READY)
            return Step(
                _claimed(row, worker, holder, lease_s, now), "task.claimed", RunState.RUNNING
            )
        case Beat(lease_s):
            _demand(row, "renewed", TaskState.RUNNING)
            return Step(_leased(row, lease_s or row.lease_s, now), None)
        case Complete():
            _demand(row, "completed", TaskState.RUNNING)
            return Step(_finished(row, TaskState.DONE, None, now), "task.done", RunState.SUCCEEDED)
        case Fail(retryable):
            _demand(row, "failed", TaskState.RUNNING)
            return _failed(row, RunState.FAILED, "failed", retryable=retryable, now=now)
        case Release(delay_s, reason):
            _demand(row, "released", TaskState.RUNNING)
            freed = _requeued(row, reason or "released", delay_s, now)
            return Step(freed, "task.released", RunState.CANCELLED)
        case Expire():
            _demand(row, "expired", TaskState.RUNNING)
            return _expired(row, now)
        case Open():
            if row.state is not TaskState.BLOCKED or row.gates_left:
                return Step(row, None)
            if row.not_before is not None and row.not_before > now:
                return Step(row, None)
            opened = row._replace(state=TaskState.READY, reason=None, not_before=None, ready_at=now)
            return Step(opened, "task.ready")
        case Shut():
            if row.state is not TaskState.READY:
                return Step(row, None)
            return Step(row._replace(state=TaskState.BLOCKED, ready_at=None), "task.blocked")
        case Unmeetable(upstream, upstream_state):
            return _unmeetable(row, f"{upstream} {upstream_state}", now)
        case Cancel(reason):
            if row.state in FINISHED:
                raise errors.StateForbids(f"task {row.id} is {row.state} and cannot be cancelled")
            run = RunState.CANCELLED if row.state is TaskState.RUNNING else None
            return Step(_finished(row, TaskState.CANCELLED, reason, now), "task.cancelled", run)
        case Again():
            _demand(row, "retried", TaskState.FAILED, TaskState.CANCELLED)
            return Step(_anew(row, now), "task.retried")
        case _:
            assert_never(verb)


def _demand(row: TaskRow, participle: str, *states: TaskState) -> None:
    if row.state not in states:
        wanted = " or ".join(states)
        raise errors.StateForbids(
            f"task {row.id} is {row.state} and cannot be {participle}",
            hint=f"only a task that is {wanted} can be {participle}",
        )


def _claimed(row: TaskRow, worker: str, holder: str, lease_s: float | None, now: float) -> TaskRow:
    row = row._replace(
        state=TaskState.RUNNING,
        reason=None,
        attempt=row.attempt + 1,
        worker=worker,
        holder=holder,
        started_at=now,
        deadline=None if row.timeout_s is None else now + row.timeout_s,
    )
    return _leased(row, lease_s or row.lease_s, now)


def _leased(row: TaskRow, lease_s: float, now: float) -> TaskRow:
    until = now + lease_s
    ends = until if row.deadline is None else min(until, row.deadline)
    return row._replace(lease_until=until, expires_at=ends)


def _unleased(row: TaskRow) -> TaskRow:
    return row._replace(worker=None, holder=None, lease_until=None, deadline=None, expires_at=None)


def _finished(row: TaskRow, state: TaskState, reason: str | None, now: float) -> TaskRow:
    # The worker's name stays: who did it is worth knowing after it is done.
    return row._replace(
        state=state,
        reason=reason,
        not_before=None,
        lease_until=None,
        deadline=None,
        expires_at=None,
        finished_at=now,
    )


def _requeued(row: TaskRow, reason: str, delay_s: float, now: float) -> TaskRow:
    row = _unleased(row)
    if delay_s > 0:
        return row._replace(
            state=TaskState.BLOCKED, reason=reason, not_before=now + delay_s, ready_at=None
        )
    return row._replace(state=TaskState.READY, reason=reason, ready_at=now)


def _failed(row: TaskRow, run: RunState, reason: str, *, retryable: bool, now: float) -> Step:
    retry = read_policy(row.policy).retry
    row = row._replace(failures=row.failures + 1)
    if retryable and row.failures < retry.max_attempts:
        told = f"attempt {row.failures} of {retry.max_attempts} {reason}"
        return Step(_requeued(row, told, retry.delay_s(row.failures), now), "task.requeued", run)
    return Step(_finished(row, TaskState.FAILED, reason, now), "task.failed", run)


def _expired(row: TaskRow, now: float) -> Step:
    if row.deadline is not None and row.deadline <= now:
        return _failed(row, RunState.TIMED_OUT, "timed out", retryable=True, now=now)
    policy = read_policy(row.policy)
    row = row._replace(expiries=row.expiries + 1)
    if policy.on_expiry is OnExpiry.REQUEUE and row.expiries <= policy.max_expiries:
        told = f"worker {row.worker} went silent"
        return Step(_requeued(row, told, 0, now), "task.requeued", RunState.LOST)
    return Step(
        _finished(row, TaskState.FAILED, "lease expired", now), "task.failed", RunState.LOST
    )


def _unmeetable(row: TaskRow, cause: str, now: float) -> Step:
    if row.state not in {TaskState.BLOCKED, TaskState.READY}:
        return Step(row, None)
    reason = f"{UNMET}: {cause}"
    match row.on_unmet:
        case Unmet.WAIT:
            return Step(row._replace(state=TaskState.BLOCKED, reason=reason), "task.stuck")
        case Unmet.CANCEL:
            return Step(_finished(row, TaskState.CANCELLED, reason, now), "task.cancelled")
        case Unmet.FAIL:
            # A ready task never lost a gate, so only a blocked one comes here.
            return Step(_finished(row, TaskState.FAILED, reason, now), "task.failed")


def _anew(row: TaskRow, now: float) -> TaskRow:
    blocked = row.gates_left > 0
    return _unleased(row)._replace(
        state=TaskState.BLOCKED if blocked else TaskState.READY,
        reason=None,
        failures=0,
        expiries=0,
        not_before=None,
        started_at=None,
        finished_at=None,
        ready_at=None if blocked else now,
    )


def edge_met(condition: str, state: TaskState, result: JsonValue) -> bool:
    """Whether an upstream task that ended in `state` satisfies an edge's condition.

    A condition is `success`, `failure` or `finish`, or the JSON list `[field, op, value]`.
    """
    match condition:
        case On.SUCCESS:
            return state is TaskState.DONE
        case On.FAILURE:
            return state is TaskState.FAILED
        case On.FINISH:
            return True
        case _:
            field, op, value = json.loads(condition)
            return state is TaskState.DONE and result_passes(result, field, op, value)


_MISSING = object()


def result_passes(result: JsonValue, field: str, op: str, value: JsonValue) -> bool:
    """Whether the field at a dotted path compares so with the value.

    A missing field passes no test but the one that it does not exist.
    """
    found = _at(result, field)
    if op == "exists":
        return (found is not _MISSING) is bool(value)
    if found is _MISSING:
        return False
    if op in {"eq", "ne"}:
        return _same(found, value) is (op == "eq")
    if op == "in":
        return isinstance(value, list) and any(_same(found, item) for item in value)
    return _ordered(found, op, value)


def _at(result: JsonValue, path: str) -> object:
    here: object = result
    for step in path.split("."):
        if isinstance(here, dict) and step in here:
            here = here[step]
        elif isinstance(here, list) and step.isdecimal() and int(step) < len(here):
            here = here[int(step)]
        else:
            return _MISSING
    return here


def _same(left: object, right: object) -> bool:
    # In JSON `true` is not 1, though in Python it is.
    return isinstance(left, bool) is isinstance(right, bool) and left == right


def _ordered(found: object, op: str, value: object) -> bool:
    numbers = isinstance(found, int | float) and isinstance(value, int | float)
    if numbers and not isinstance(found, bool) and not isinstance(value, bool):
        left, right = float(found), float(value)  # pyright: ignore[reportArgumentType] - `numbers` said so
    elif isinstance(found, str) and isinstance(value, str):
        left, right = found, value
    else:
        return False
    match op:
        case "gt":
            return left > right  # type: ignore[operator]  # both are of one type that has an order
        case "ge":
            return left >= right  # type: ignore[operator]  # both are of one type that has an order
        case "lt":
            return left < right  # type: ignore[operator]  # both are of one type that has an order
        case _:
            return left <= right  # type: ignore[operator]  # both are of one type that has an order
