"""What must be true afterwards, whatever was done to the daemon.

Knows nothing of the faults: it compares what clients were promised, what a follower was shown and
what the store holds. It looks twice, through the daemon and into the file of the ended daemon.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.figures import tell
from chaos.record import Said, read_records
from microvm_orchestrator.model.task import FINISHED, TaskState
from microvm_orchestrator.model.transition import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from chaos.ask import Asker
    from chaos.crew import Crew
    from chaos.process import Daemon

# After a restart leases get twice their length, and the load's are three seconds.
QUIET_WITHIN_S = 30
# What a daemon that has ended leaves in its state directory.
_LEFT = {"acceleration.json", "artifacts", "lock", "repos", "runs", "store.db"}
_RUN_AFTER = {"complete": "succeeded", "fail": "failed", "release": "cancelled"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is known of a campaign."""

    said: Sequence[Said]
    followed: Sequence[Any]
    journal: Sequence[Any]
    tasks: Sequence[Any]
    doctor: Any
    # By task and attempt: state and result, as they lie in the file.
    runs: dict[tuple[str, int], tuple[str, Any]]
    files: frozenset[str]


@dataclass(slots=True)
class Verdict:
    """What is wrong, one sentence each."""

    lost: list[str] = field(default_factory=list[str])
    doubled: list[str] = field(default_factory=list[str])
    illegal: list[str] = field(default_factory=list[str])

    @property
    def wrong(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.illegal]


def collect(daemon: Daemon, asker: Asker, crew: Crew) -> Evidence:
    """Wait until no lease is left, read everything, and end the daemon."""
    crew.stop()
    until_quiet(asker)
    crew.stop_follower()
    journal = asker.journal()
    tasks = asker.pages("/v1/tasks")
    doctor = asker.get("/v1/doctor")
    asker.hang_up()
    assert daemon.end() == 0, daemon.tail()
    files = frozenset(path.name for path in daemon.state_dir.iterdir())
    return Evidence(
        said=[said for path in crew.records for said in read_records(path)],
        followed=[json.loads(line) for line in crew.followed.read_text("utf-8").splitlines()],
        journal=journal,
        tasks=tasks,
        doctor=doctor,
        runs=_runs_in(daemon.store),
        files=files,
    )


def until_quiet(asker: Asker) -> None:
    """Wait until nobody holds a task: forgotten ones are taken back when their leases run out."""
    page = asker.get("/v1/events", after="now")
    for _ in range(QUIET_WITHIN_S):
        if not asker.get("/v1/tasks", state="running")["items"]:
            return
        page = asker.get("/v1/events", after=page["cursor"], kinds="task.*", timeout_s=1.0)


def _runs_in(store: Path) -> dict[tuple[str, int], tuple[str, Any]]:
    with contextlib.closing(sqlite3.connect(f"file:{store}?immutable=1", uri=True)) as connection:
        rows = connection.execute(
            "SELECT task.id, run.attempt, run.state, run.result"
            " FROM run JOIN task ON task.seq = run.task"
        ).fetchall()
    return {
        (task_id, attempt): (state, None if result is None else json.loads(result))
        for task_id, attempt, state, result in rows
    }


def judge(evidence: Evidence) -> Verdict:
    verdict = Verdict()
    _judge_journal(evidence, verdict)
    _judge_tasks(evidence, verdict)
    _judge_submits(evidence, verdict)
    _judge_claims(evidence, verdict)
    _judge_words(evidence, verdict)
    verdict.illegal += [
        f"doctor: {check['name']}: {check['found']}"
        for check in evidence.doctor["checks"]
        if check["state"] == "failed"
    ]
    verdict.illegal += [f"orphaned file {name}" for name in sorted(evidence.files - _LEFT)]
    return verdict


def _judge_journal(evidence: Evidence, verdict: Verdict) -> None:
    numbers = [event["seq"] for event in evidence.journal]
    if numbers != list(range(1, len(numbers) + 1)):
        verdict.lost.append("the journal has gaps")
    times = [event["at"] for event in evidence.journal]
    if times != sorted(times):
        verdict.illegal.append("the journal's times run backwards")
    shown = Counter(event["seq"] for event in evidence.followed)
    verdict.doubled += [f"event {seq} was shown {n} times" for seq, n in shown.items() if n > 1]
    verdict.lost += [f"event {seq} was never shown" for seq in numbers if seq not in shown]
    stored = {event["seq"]: event for event in evidence.journal}
    verdict.lost += [
        f"event {event['seq']} was shown as {event} and is {stored.get(event['seq'])}"
        for event in evidence.followed
        if stored.get(event["seq"]) != event
    ]


def _of_tasks(journal: Iterable[Any]) -> dict[str, list[Any]]:
    """Gather the events that tell of a task's state, by task."""
    found: dict[str, list[Any]] = defaultdict(list)
    for event in journal:
        if event["kind"].startswith("task."):
            found[event["subject"]].append(event)
    return found


def _judge_tasks(evidence: Evidence, verdict: Verdict) -> None:
    """Play each task's events again: they must be a legal life that ends where the task is."""
    states = {task["task_id"]: TaskState(task["state"]) for task in evidence.tasks}
    lives = _of_tasks(evidence.journal)
    verdict.lost += [f"task {task_id} has no event" for task_id in states.keys() - lives.keys()]
    for task_id, events in lives.items():
        verdict.illegal += _wrong_in_life(task_id, events, states.get(task_id))
        done = sum(event["kind"] == "task.done" for event in events)
        if done > 1:
            verdict.doubled.append(f"task {task_id} was done {done} times")
    verdict.illegal += [
        f"task {task_id} is still held by somebody"
        for task_id, state in states.items()
        if state is TaskState.RUNNING
    ]


def _wrong_in_life(task_id: str, events: Sequence[Any], now: TaskState | None) -> Iterator[str]:
    kinds = [event["kind"] for event in events]
    if kinds.count("task.submitted") != 1 or kinds[0] != "task.submitted":
        yield f"task {task_id} began with {kinds}"
    state, attempt = TaskState(events[0]["body"]["state"]), 0
    for event in events[1:]:
        body = event["body"]
        after = TaskState(body["state"])
        if "was" in body and body["was"] != state:
            yield f"task {task_id} was {state} when event {event['seq']} says {body['was']}"
        if after is not state and after not in TRANSITIONS[state]:
            yield f"task {task_id} went from {state} to {after} in event {event['seq']}"
        if event["kind"] == "task.claimed":
            if body["attempt"] != attempt + 1:
                yield f"task {task_id} went from token {attempt} to {body['attempt']}"
            attempt = body["attempt"]
        state = after
    if now is not state:
        yield f"task {task_id} is {now}, and its events end with {state}"


def _judge_submits(evidence: Evidence, verdict: Verdict) -> None:
    """Every task that was promised is there once, and no other."""
    stored = Counter(task["title"] for task in evidence.tasks)
    by_title = {task["title"]: task["task_id"] for task in evidence.tasks}
    asked: set[str] = set()
    for said in _said(evidence, "submit"):
        titles = said.asked["titles"]
        asked.update(titles)
        if said.got is None:
            continue
        if said.got != "ok":
            verdict.illegal.append(f"submit of {titles} was refused: {said.got}")
        elif said.answer["replayed"] and not said.answer["unknown"]:
            verdict.doubled.append(f"submit of {titles} was called a replay, and was none")
        elif [by_title.get(title) for title in titles] != said.answer["ids"]:
            verdict.lost.append(f"submit of {titles} was acknowledged, and is not as promised")
    verdict.doubled += [f"task {title} is there {n} times" for title, n in stored.items() if n > 1]
    verdict.illegal += [f"nobody asked for task {title}" for title in stored.keys() - asked]


def _judge_claims(evidence: Evidence, verdict: Verdict) -> None:
    """Nobody was given what another was given, and the journal says the same."""
    claimed = {
        (event["subject"], event["body"]["attempt"]): event["body"]["worker"]
        for event in evidence.journal
        if event["kind"] == "task.claimed"
    }
    given: dict[tuple[str, int], str] = {}
    for said in _said(evidence, "claim", "look"):
        for task_id, token in said.answer.get("taken", []):
            if (task_id, token) in given:
                verdict.doubled.append(
                    f"token {token} of {task_id} was given to {given[task_id, token]}"
                    f" and to {said.client}"
                )
            given[task_id, token] = said.client
            if claimed.get((task_id, token)) != said.client:
                verdict.lost.append(
                    f"the claim of {task_id} by {said.client} is not in the journal"
                )


def _judge_words(evidence: Evidence, verdict: Verdict) -> None:
    """What a worker said and was heard is so; what was refused is not."""
    completed = Counter(
        said.asked["task_id"] for said in _said(evidence, "complete") if said.got == "ok"
    )
    verdict.doubled += [f"{task} was completed {n} times" for task, n in completed.items() if n > 1]
    for said in _said(evidence, *_RUN_AFTER):
        ref = said.asked["task_id"], said.asked["token"]
        state, result = evidence.runs.get(ref, ("missing", None))
        right = state == _RUN_AFTER[said.ask] and result == said.asked.get("result")
        if said.got == "ok" and not right:
            verdict.lost.append(f"{said.ask} of {ref} was heard, and its attempt is {state}")
        if said.got == "ok" and said.answer["repeated"] and not said.answer["unknown"]:
            verdict.doubled.append(f"{said.ask} of {ref} was said once and called repeated")
        # Given back and taken by another already, a repeated word is refused though it was heard.
        if said.got == "lease-lost" and said.ask != "release" and right:
            verdict.illegal.append(f"{said.ask} of {ref} was refused, and took effect")
    cancelled = {
        event["subject"] for event in evidence.journal if event["kind"] == "task.cancelled"
    }
    verdict.lost += [
        f"the cancellation of {said.asked['task_id']} was acknowledged, and did not happen"
        for said in _said(evidence, "cancel")
        if said.got == "ok" and said.asked["task_id"] not in cancelled
    ]


def _said(evidence: Evidence, *asks: str) -> Iterator[Said]:
    return (said for said in evidence.said if said.ask in asks)


def report(name: str, evidence: Evidence, verdict: Verdict, **faults: object) -> None:
    """Print the figures of a campaign, one a line."""
    ends = list(_said(evidence, "end"))
    for fault, count in faults.items():
        tell(f"{name}: {fault.replace('_', ' ')}", str(count))
    tell(f"{name}: requests", str(sum(said.answer["requests"] for said in ends)))
    unknown = sum(said.answer["unknown"] for said in ends)
    open_ = sum(said.got is None for said in evidence.said)
    tell(f"{name}: answers lost, then resolved", f"{unknown}, open {open_}")
    again = sum(
        bool(said.answer.get("replayed") or said.answer.get("repeated")) for said in evidence.said
    )
    tell(f"{name}: repeats recognised", str(again))
    finished = sum(TaskState(task["state"]) in FINISHED for task in evidence.tasks)
    tell(f"{name}: tasks, finished", f"{len(evidence.tasks)}, {finished}")
    tell(f"{name}: events", str(len(evidence.journal)))
    tell(f"{name}: lost", str(len(verdict.lost)), aim="0")
    tell(f"{name}: duplicated", str(len(verdict.doubled)), aim="0")
    tell(f"{name}: illegal", str(len(verdict.illegal)), aim="0")
