"""Anything that may happen to a graph, in any order: at each step the store agrees with a model."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio.from_thread
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from graph_model import FINISHED, Ask, Model, Node, On, Refused
from microvm_orchestrator import errors
from microvm_orchestrator.model.task import GroupedSpec, TaskError
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import (
    Address,
    Beat,
    CancelTasks,
    Change,
    DeleteTask,
    Done,
    Failed,
    Graph,
    InGroup,
    Keep,
    NewTask,
    Offer,
    Outcome,
    Ref,
    Released,
    RetryTasks,
    SetPriority,
    UpdateTask,
)
from microvm_orchestrator.store.questions import FullTaskList, OneGroup
from microvm_orchestrator.store.sqlite import SqliteStore
from storing import ALICE, BEGIN, HandClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.from_thread import BlockingPortal

    from microvm_orchestrator.model.task import Task

T = TypeVar("T")

GROUPS = ("one", "two")
CAPABILITIES = ("kvm", "gpu")
LEASE_S = 8.0
# Each task is checked after each step, so a graph stays small; few tasks meet more often.
MOST = 16
ONS: st.SearchStrategy[On] = st.sampled_from(
    ["success", "success", "failure", "finish", "finish", "one"]
)
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"

OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from(
    [
        Done({"v": 1}),
        Done({"v": 1}),
        Done({"v": 0}),
        Failed(TaskError(message="broken"), retryable=False),
        Failed(TaskError(message="broken"), retryable=True),
        Released("given back"),
        Released("given back", delay_s=5.0),
    ]
)
chance = st.integers(0, 3).map(lambda number: number == 0)


class GraphMachine(RuleBasedStateMachine):
    """Every verb that changes the graph, on the store and on the model."""

    # Set by the test: where coroutines run.
    portal: BlockingPortal

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = HandClock()
        self.model = Model(BEGIN)
        self.ids: dict[str, str] = {}
        self._open()

    def _open(self) -> None:
        self.store = SqliteStore(Path(self.folder.name) / "store.sqlite", self.clock.begin)
        self.opened = self.portal.wrap_async_context_manager(self.store.opened())
        self.opened.__enter__()

    def teardown(self) -> None:
        self.opened.__exit__(None, None, None)
        self.folder.cleanup()

    def call(self, verb: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        return self.portal.call(verb, *arguments)

    def both(
        self, change: Callable[[Model], set[str] | None], verb: Callable[[], Awaitable[Any]]
    ) -> None:
        """Let it happen to both; if one refuses, the other must, for the same reason."""
        after = copy.deepcopy(self.model)
        try:
            told = change(after)
        except Refused as refused:
            code = str(refused)
            with pytest.raises(errors.OrchestratorError, check=lambda met: met.code == code):
                self.portal.call(verb)
            return
        answer = self.portal.call(verb)
        self.model = after
        if told is not None:
            by_id = {task_id: name for name, task_id in self.ids.items()}
            assert {by_id[task_id] for task_id in answer.task_ids} == told

    def names(self, *states: str) -> list[str]:
        nodes = self.model.alive()
        return [node.name for node in nodes if not states or node.state in states]

    def ref(self, name: str, token: int | None = None) -> Ref:
        attempt = self.model.nodes[name].attempt if token is None else token
        return Ref(Address(self.ids[name]), attempt, "w1")

    # Entering

    def _draw_asks(self, data: st.DataObject, from_: list[str]) -> list[Ask]:
        asks: list[Ask] = []
        for _ in range(data.draw(st.integers(0, 2))):
            if not from_:
                break
            ups = data.draw(st.lists(st.sampled_from(from_), min_size=1, max_size=3, unique=True))
            of: list[tuple[str, On]] = [(up, data.draw(ONS)) for up in ups]
            need = data.draw(st.integers(1, len(of)))
            asks.append(Ask(need, tuple(of)))
        return asks

    def _draw_node(self, data: st.DataObject, group: str, parent: str | None) -> Node:
        self.model.made += 1
        number = self.model.made
        draw = data.draw
        later = draw(st.sampled_from([None, None, None, None, 3.0, 20.0]))
        return Node(
            name=f"k{number}",
            group=group,
            order=number,
            priority=draw(st.sampled_from([0, 0, 5])),
            capability=draw(st.sampled_from([None, None, *CAPABILITIES])),
            on_unmet=draw(st.sampled_from(["wait", "cancel", "fail"])),
            max_attempts=draw(st.sampled_from([1, 1, 3])),
            backoff_s=draw(st.sampled_from([0.0, 4.0])),
            max_expiries=draw(st.integers(0, 2)),
            timeout_s=draw(st.sampled_from([None, None, 11.0])),
            lease_s=LEASE_S,
            not_before=None if later is None else self.model.now + later,
            parent=parent,
        )

    def _depends_on(self, asks: list[Ask], fresh: set[str]) -> list[Any]:
        def edge(up: str, on: str) -> dict[str, Any]:
            ref = up if up in fresh else self.ids[up]
            if on == "one":
                return {"task": ref, "where": {"field": "v", "op": "eq", "value": 1}}
            return {"task": ref, "on": on}

        return [{"need": ask.need, "of": [edge(*one) for one in ask.of]} for ask in asks]

    def _new(
        self, node: Node, asks: list[Ask], fresh: set[str], before: tuple[str, ...] = ()
    ) -> NewTask:
        spec = GroupedSpec.model_validate(
            {
                "key": node.name,
                "group": node.group,
                "depends_on": self._depends_on(asks, fresh),
                "on_unmet": node.on_unmet,
                "priority": node.priority,
                "capabilities": [node.capability] if node.capability else [],
                "timeout_s": node.timeout_s,
                "retry": {"max_attempts": node.max_attempts, "backoff_s": node.backoff_s},
                "max_expiries": node.max_expiries,
                "not_before": None if node.not_before is None else moment(node.not_before),
            }
        )
        return NewTask(spec, LEASE_S, child=node.parent is not None, before=before)

    def _submit(
        self, change: Callable[[Model], None], tasks: list[NewTask], under: Ref | None = None
    ) -> None:
        async def verb() -> None:
            submitted = await self.store.submit(Graph(tuple(tasks), under=under), ALICE)
            self.ids |= {str(made.key): made.task_id for made in submitted.tasks}

        self.both(change, verb)

    # Hypothesis leaves some rules out of each run, even this one; but a graph there must be.
    @initialize(data=st.data(), group=st.sampled_from(GROUPS), count=st.integers(2, 8))
    def begin(self, data: st.DataObject, group: str, count: int) -> None:
        self._submit_some(data, group, count)

    @precondition(lambda self: len(self.model.alive()) < MOST)
    @rule(data=st.data(), group=st.sampled_from(GROUPS), count=st.integers(1, 4))
    def submit(self, data: st.DataObject, group: str, count: int) -> None:
        self._submit_some(data, group, count)

    def _submit_some(self, data: st.DataObject, group: str, count: int) -> None:
        nodes = [self._draw_node(data, group, None) for _ in range(count)]
        fresh = {node.name for node in nodes}
        cyclic = data.draw(chance)
        drawn: list[tuple[Node, list[Ask]]] = []
        for index, node in enumerate(nodes):
            near = nodes if cyclic else nodes[:index]
            known = self.names() + [other.name for other in near if other is not node]
            drawn.append((node, self._draw_asks(data, known)))
        drawn = data.draw(st.permutations(drawn))
        for order, (node, _) in enumerate(drawn):
            node.order = 1000 * self.model.made + order
        tasks = [self._new(node, asks, fresh) for node, asks in drawn]
        self._submit(lambda model: model.submit(copy.deepcopy(drawn)), tasks)

    @precondition(lambda self: self.names("running") and len(self.model.alive()) < MOST)
    @rule(data=st.data(), count=st.integers(1, 3))
    def grow(self, data: st.DataObject, count: int) -> None:
        parent = self.model.nodes[data.draw(st.sampled_from(self.names("running")))]
        known = [name for name in self.names() if name != parent.name]
        drawn: list[tuple[Node, list[Ask]]] = []
        for order in range(count):
            child = data.draw(st.booleans())
            node = self._draw_node(data, parent.group, parent.name if child else None)
            node.order = 1000 * self.model.made + order
            drawn.append((node, self._draw_asks(data, known) if data.draw(chance) else []))
        tasks = [self._new(node, asks, set()) for node, asks in drawn]
        self._submit(
            lambda model: model.submit(copy.deepcopy(drawn), parent.name),
            tasks,
            self.ref(parent.name),
        )

    @precondition(lambda self: self.names() and len(self.model.alive()) < MOST)
    @rule(data=st.data())
    def put_before(self, data: st.DataObject) -> None:
        low = data.draw(st.sampled_from(self.names()))
        node = self._draw_node(data, self.model.nodes[low].group, None)
        node.order = 1000 * self.model.made
        asks = self._draw_asks(data, self.names())

        def change(model: Model) -> None:
            # One change: if the second half is refused, the first has not happened either.
            model.nodes[node.name] = copy.deepcopy(node)
            model.submit([(model.nodes[node.name], asks)])
            model.put_before(node.name, low)

        self._submit(change, [self._new(node, asks, set(), (low,))])

    # Claims and ends

    @rule(
        capabilities=st.sets(st.sampled_from(CAPABILITIES)), groups=st.sets(st.sampled_from(GROUPS))
    )
    def claim(self, capabilities: set[str], groups: set[str]) -> None:
        self._claim(capabilities, groups)

    @rule()
    def claim_anything(self) -> None:
        self._claim(set(CAPABILITIES), set())

    def _claim(self, capabilities: set[str], groups: set[str]) -> str | None:
        offer = Offer("w1", frozenset(capabilities), groups=tuple(sorted(groups)))
        claimed = self.call(self.store.claim, offer, ALICE)
        expected = self.model.claim(capabilities, groups)
        got = claimed.tasks[0][0].key if claimed.tasks else claimed.verdict.value
        assert got == expected
        if not claimed.tasks:
            return None
        assert claimed.tasks[0][1].token == self.model.nodes[expected].attempt
        return expected

    def _end(self, name: str, outcome: Outcome) -> None:
        ref = self.ref(name)
        for verdict in ("accepted", "repeated"):
            settled = self.call(self.store.settle, ref, outcome, ALICE)
            assert settled.verdict == verdict
        match outcome:
            case Done(result):
                assert isinstance(result, dict)
                self.model.complete(name, result["v"] == 1)
            case Failed(_, retryable):
                self.model.fail(name, retryable=retryable)
            case Released(_, delay_s):
                self.model.release(name, delay_s)

    @precondition(lambda self: self.names("running"))
    @rule(data=st.data(), outcome=OUTCOMES)
    def end(self, data: st.DataObject, outcome: Outcome) -> None:
        self._end(data.draw(st.sampled_from(self.names("running"))), outcome)

    # The daily bread, under two names so that it comes more often: only what moves meets the rest.
    @rule(outcomes=st.lists(OUTCOMES, max_size=4))
    def work(self, outcomes: list[Outcome]) -> None:
        self._work(outcomes)

    @rule(outcomes=st.lists(OUTCOMES, min_size=1, max_size=4))
    def work_more(self, outcomes: list[Outcome]) -> None:
        self._work(outcomes)

    def _work(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            name = self._claim(set(CAPABILITIES), set())
            if name is not None:
                self._end(name, outcome)

    @precondition(lambda self: self.names("running"))
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.names("running")))
        (renewed,) = self.call(self.store.renew, [Beat(self.ref(name))], ALICE)
        assert renewed.held
        self.model.beat(name)

    @precondition(lambda self: self.names())
    @rule(data=st.data(), late=st.integers(-1, 2))
    def speak_with_a_wrong_token(self, data: st.DataObject, late: int) -> None:
        name = data.draw(st.sampled_from(self.names()))
        node = self.model.nodes[name]
        if late == 0 and node.state == "running":
            return
        ref = self.ref(name, node.attempt - late)
        settled = self.call(self.store.settle, ref, Done({"v": 99}), ALICE)
        assert settled.verdict == "fenced"
        (renewed,) = self.call(self.store.renew, [Beat(ref)], ALICE)
        assert not renewed.held

    # Time

    @rule(seconds=st.sampled_from([1, 2, 4, 9, 21]))
    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            self.model.now += 1
            self.call(self.store.sweep, Keep())
            self.model.sweep()

    @rule(age_s=st.sampled_from([0.0, 5.0]))
    def forget_the_past(self, age_s: float) -> None:
        self.call(self.store.sweep, Keep(task_age_s=age_s))
        self.model.sweep()
        self.model.trim(age_s)

    @rule(away_s=st.sampled_from([0, 1, 100]))
    def restart(self, away_s: int) -> None:
        self.opened.__exit__(None, None, None)
        self.clock.advance(away_s)
        self._open()
        self.model.now += away_s
        self.model.grace()
        self.call(self.store.sweep, Keep())
        self.model.sweep()

    # Changes from outside

    def _amend(self, which: Address | InGroup, change: Change) -> Callable[[], Awaitable[Any]]:
        return lambda: self.store.amend(which, change, ALICE)

    @precondition(lambda self: self.names())
    @rule(data=st.data(), cascade=chance)
    def cancel(self, data: st.DataObject, cascade: bool) -> None:
        unfinished = self.names("blocked", "ready", "running")
        name = data.draw(st.sampled_from(unfinished or self.names()))

        def change(model: Model) -> set[str]:
            if model.nodes[name].state in FINISHED:
                raise Refused("state-forbids")
            return model.cancel([name], cascade=cascade)

        self.both(change, self._amend(Address(self.ids[name]), CancelTasks("no", cascade)))

    @precondition(lambda self: self.names("failed", "cancelled", "blocked"))
    @rule(data=st.data(), upstream=st.booleans())
    def retry(self, data: st.DataObject, upstream: bool) -> None:
        unlucky = self.names("failed", "cancelled")
        name = data.draw(st.sampled_from(unlucky or self.names("blocked")))
        verb = self._amend(Address(self.ids[name]), RetryTasks(upstream))
        self.both(lambda model: model.retry(name, upstream=upstream), verb)

    @precondition(lambda self: self.behind_running_ones())
    @rule(data=st.data())
    def retry_behind_the_back_of_a_running_one(self, data: st.DataObject) -> None:
        """Seldom met by chance, and where counting goes wrong most easily."""
        name = data.draw(st.sampled_from(self.behind_running_ones()))
        verb = self._amend(Address(self.ids[name]), RetryTasks())
        self.both(lambda model: model.retry(name, upstream=False), verb)

    def behind_running_ones(self) -> list[str]:
        running = [self.model.nodes[name] for name in self.names("running")]
        above = {edge.upstream for node in running for edge in node.edges()}
        return [name for name in self.names("failed", "cancelled") if name in above]

    @rule(group=st.sampled_from(GROUPS), change=st.sampled_from(["cancel", "retry", "retry"]))
    def change_group(self, group: str, change: Literal["cancel", "retry"]) -> None:
        members = [node.name for node in self.model.alive() if node.group == group]
        if not members:
            return
        if change == "cancel":
            verb = self._amend(InGroup(group), CancelTasks("no"))
            self.both(lambda model: model.cancel(members), verb)
        else:
            verb = self._amend(InGroup(group), RetryTasks())
            self.both(lambda model: model.retry_group(group), verb)

    def _update(self, name: str, **changes: Any) -> Callable[[], Awaitable[Any]]:
        spec = GroupedSpec.model_validate(changes)
        return self._amend(Address(self.ids[name]), UpdateTask(spec, frozenset(changes)))

    @precondition(lambda self: self.names())
    @rule(data=st.data())
    def rewire(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.names("blocked", "ready") or self.names()))
        asks = self._draw_asks(data, [other for other in self.names() if other != name])
        verb = self._update(name, depends_on=self._depends_on(asks, set()))
        self.both(lambda model: model.rewire(name, asks), verb)

    @precondition(lambda self: self.names("blocked", "ready"))
    @rule(
        data=st.data(),
        change=st.sampled_from(["priority", "time", "on_unmet"]),
        later=st.sampled_from([None, 0.0, 2.0, 30.0]),
        what=st.sampled_from(["wait", "cancel", "fail"]),
    )
    def tweak(
        self,
        data: st.DataObject,
        change: Literal["priority", "time", "on_unmet"],
        later: float | None,
        what: Literal["wait", "cancel", "fail"],
    ) -> None:
        name = data.draw(st.sampled_from(self.names("blocked", "ready")))
        match change:
            case "priority":
                priority = int(later or -5)
                self.call(self.store.amend, Address(self.ids[name]), SetPriority(priority), ALICE)
                self.model.nodes[name].priority = priority
            case "time":
                until = None if later is None else self.model.now + later
                verb = self._update(name, not_before=None if until is None else moment(until))
                self.both(lambda model: model.postpone(name, until), verb)
            case "on_unmet":
                verb = self._update(name, on_unmet=what)
                self.both(lambda model: model.on_unmet(name, what), verb)

    @precondition(lambda self: len(self.model.alive()) > MOST // 2)
    @rule(data=st.data(), cascade=chance)
    def delete(self, data: st.DataObject, cascade: bool) -> None:
        name = data.draw(st.sampled_from(self.names()))
        verb = self._amend(Address(self.ids[name]), DeleteTask(cascade))
        self.both(lambda model: model.delete(name, cascade=cascade), verb)

    # What must hold after each step

    @invariant()
    def the_store_and_the_model_agree(self) -> None:
        found: dict[str, Task] = {}
        for group in GROUPS:
            page = self.call(self.store.query, FullTaskList(group), ALICE)
            found |= {str(task.key): task for task in page.items}
        nodes = {node.name: node for node in self.model.alive()}
        assert {name: task.state.value for name, task in found.items()} == {
            name: node.state for name, node in nodes.items()
        }
        for name, node in nodes.items():
            task = found[name]
            assert task.attempt == node.attempt, name
            closed = not all(gate.open for gate in node.gates)
            waits = {edge.upstream for edge in node.edges() if edge.state == "open"}
            expected = {self.ids[up] for up in waits} if closed else set[str]()
            assert set(task.waiting_for) == expected, name
            if node.state == "running":
                assert task.lease_expires_at == moment(node.expires_at), name

    @invariant()
    def the_store_finds_nothing_wrong_with_itself(self) -> None:
        assert self.call(self.store.check).problems == ()

    @invariant()
    def the_state_of_a_group_is_what_its_tasks_say(self) -> None:
        for group in GROUPS:
            states = [node.state for node in self.model.alive() if node.group == group]
            if not states:
                continue
            told = self.call(self.store.query, OneGroup(group), ALICE).state
            # A claim that fits nothing tells how the rest stands.
            verdict = copy.deepcopy(self.model).claim(set(), {group})
            if "running" in states:
                assert told == "running"
            elif "ready" in states:
                assert told == "waiting"
            elif "blocked" in states:
                assert told == verdict
            else:
                words = ("failed", "cancelled", "done")
                assert told == next(word for word in words if word in states)


def test_the_graph_does_what_a_plain_model_of_it_does(whole: bool) -> None:
    long = whole or LONG
    profile = settings(
        max_examples=1500 if long else 50,
        stateful_step_count=60 if long else 30,
        # The same examples each time: then a change is to blame for a failure. New ones when long.
        derandomize=not long,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    with anyio.from_thread.start_blocking_portal() as portal:
        GraphMachine.portal = portal
        run_state_machine_as_test(GraphMachine, settings=profile)
