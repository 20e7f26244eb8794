"""What a verb costs in statements and in steps of the engine's machine: never the graph's size."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.store import figures, groups, journal, lease, lists, reports
from microvm_orchestrator.store import questions as q
from microvm_orchestrator.store import settle as settling
from microvm_orchestrator.store import submit as submitting
from microvm_orchestrator.store import sweep as sweeping
from microvm_orchestrator.store.base import Address, Beat, Done, Graph, Keep, Match, Offer, Ref
from microvm_orchestrator.store.file import connect
from microvm_orchestrator.store.migrate import migrate
from microvm_orchestrator.store.rows import Classes, Tx
from storing import ALICE, BEGIN, actor, task

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.store.base import NewTask


@dataclass
class Counted:
    statements: list[str] = field(default_factory=list[str])
    steps: int = 0


@dataclass
class Bare:
    """The engine's verbs on a connection that is watched, without lanes around them."""

    connection: sqlite3.Connection
    classes: Classes = field(default_factory=Classes)

    def tx(self, by: Actor = ALICE) -> Tx:
        return Tx(self.connection, self.classes, BEGIN, by)

    def submit(self, *tasks: NewTask) -> None:
        submitting.submit(self.tx(), Graph(tasks))

    def take(self) -> Ref:
        ((found, held),) = lease.claim(self.tx(), Offer("w1")).tasks
        return Ref(Address(found.task_id), held.token, "w1")

    @contextlib.contextmanager
    def counted(self) -> Generator[Counted]:
        counted = Counted()

        def step() -> int:
            counted.steps += 1
            return 0

        self.connection.set_trace_callback(counted.statements.append)
        self.connection.set_progress_handler(step, 1)
        try:
            yield counted
        finally:
            self.connection.set_trace_callback(None)
            self.connection.set_progress_handler(None, 1)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    with contextlib.closing(connect(tmp_path / "store.sqlite")) as connection:
        migrate(connection)
        connection.execute("INSERT OR IGNORE INTO meta (name, value) VALUES ('epoch', 'e')")
        connection.execute("BEGIN")
        yield Bare(connection)
        connection.execute("COMMIT")


def cost_of_completion(bare: Bare, dependents: int, name: str = "first") -> Counted:
    """Complete the most urgent task, which so many wait for."""
    key = f"{name}{dependents}"
    bare.submit(task(key, priority=1000), *(task(f"{key}.{i}", key) for i in range(dependents)))
    ref = bare.take()
    with bare.counted() as counted:
        settled = settling.settle(bare.tx(), ref, Done({"n": 1}))
    assert len(settled.unlocked) == dependents
    return counted


def test_a_completion_costs_what_the_task_has_dependents_not_what_the_graph_has_tasks(
    bare: Bare,
) -> None:
    small = {width: cost_of_completion(bare, width) for width in (0, 1, 10, 20)}
    # A graph ten thousand times as large, tied together in many ways.
    bare.submit(*(task(f"bulk{i}", *([f"bulk{i // 2}"] if i else [])) for i in range(10_000)))
    large = {width: cost_of_completion(bare, width, "again") for width in small}
    count = {width: len(counted.statements) for width, counted in small.items()}
    assert count == {width: len(counted.statements) for width, counted in large.items()}
    # Each dependent costs the same.
    assert 9 * (count[20] - count[10]) == 10 * (count[10] - count[1])
    for width, counted in large.items():
        assert counted.steps < 1.5 * small[width].steps


def test_a_claim_does_not_touch_what_cannot_fit(bare: Bare) -> None:
    bare.submit(task("mine", capabilities=["mine"]))
    offer = Offer("w1", capabilities=frozenset({"mine"}))
    with bare.counted() as alone:
        assert lease.claim(bare.tx(), offer).tasks
    bare.submit(*(task(f"k{i}", capabilities=["other"], priority=9) for i in range(10_000)))
    bare.submit(task("mine2", capabilities=["mine"]))
    with bare.counted() as among_many:
        assert lease.claim(bare.tx(), offer).tasks[0][0].key == "mine2"
    # One class more to look at, and nothing for the ten thousand in it.
    assert among_many.steps < alone.steps + 200
    with bare.counted() as in_vain:
        assert lease.claim(bare.tx(), offer).verdict == "no_match"
    assert in_vain.steps < alone.steps + 200


def test_a_heartbeat_costs_the_same_in_a_graph_of_any_size(bare: Bare) -> None:
    bare.submit(task("a", priority=9))
    ref = bare.take()
    with bare.counted() as alone:
        lease.renew(bare.tx(), [Beat(ref)])
    bare.submit(*(task(f"k{i}") for i in range(5000)))
    with bare.counted() as among_many:
        lease.renew(bare.tx(), [Beat(ref)])
    assert among_many.steps < 1.2 * alone.steps


def test_a_sweep_with_nothing_to_do_looks_at_nothing(bare: Bare) -> None:
    keep = Keep(event_age_s=60.0, event_count=10**6, task_age_s=60.0, task_count=10**6)
    bare.submit(task("a"))
    with bare.counted() as alone:
        sweeping.sweep(bare.tx(), keep, BEGIN)
    bare.submit(*(task(f"k{i}", "a") for i in range(20_000)))
    with bare.counted() as among_many:
        sweeping.sweep(bare.tx(), keep, BEGIN)
    assert among_many.steps < alone.steps + 200


QUESTIONS: list[tuple[Callable[[Tx, Any], object], object]] = [
    (lists.one_task, q.OneTask("k5")),
    (lists.run_list, q.RunList("k5")),
    (groups.group_list, q.GroupList()),
    (groups.one_group, q.OneGroup("default")),
    (reports.group_report, q.GroupAnalysis("default")),
    (figures.figures, q.Figures()),
    (figures.figures, q.Figures(group="default")),
]


@pytest.mark.parametrize(("answer", "question"), QUESTIONS)
@pytest.mark.parametrize("everything", [True, False])
def test_no_report_reads_the_journal(
    bare: Bare,
    answer: Callable[[Tx, Any], object],
    question: object,
    everything: bool,
) -> None:
    bare.submit(*(task(f"k{i}", *([f"k{i - 1}"] if i else [])) for i in range(20)))
    settling.settle(bare.tx(), bare.take(), Done())
    by = actor("alice", Role.OPERATOR, Scope(everything=everything))
    with bare.counted() as counted:
        answer(bare.tx(by), question)
    assert counted.statements
    assert not [sql for sql in counted.statements if re.search(r"\bevent\b", sql)]


@pytest.mark.parametrize(
    ("answer", "question"), [pair for pair in QUESTIONS if "Figures" not in repr(pair[1])]
)
def test_what_is_asked_of_a_group_does_not_go_through_the_others(
    bare: Bare, answer: Callable[[Tx, Any], object], question: object
) -> None:
    bare.submit(*(task(f"k{i}") for i in range(20)))
    with bare.counted() as alone:
        answer(bare.tx(), question)
    if not isinstance(question, q.GroupList):
        bare.submit(*(task(f"x{i}", group="other") for i in range(5000)))
        with bare.counted() as among_many:
            answer(bare.tx(), question)
        assert among_many.steps < 1.5 * alone.steps + 100
    plans = [
        row[3]
        for sql in alone.statements
        for row in bare.connection.execute(f"EXPLAIN QUERY PLAN {sql}")
    ]
    assert not [plan for plan in plans if re.match(r"SCAN (task|run|edge|event)$", plan)]


def test_the_history_of_one_task_is_found_by_its_index(bare: Bare) -> None:
    bare.submit(*(task(f"k{i}") for i in range(30_000)))
    bare.submit(task("a"))
    task_id = lists.one_task(bare.tx(), q.OneTask("a")).task_id
    match = Match(subjects=(task_id,))
    with bare.counted() as counted:
        events = journal.read_events(bare.connection, bare.classes, None, match, 10, ALICE)
    assert len(events.events) == 1
    assert counted.steps < 500
