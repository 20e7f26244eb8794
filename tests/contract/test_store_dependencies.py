"""Gates and edges: what opens a task, what makes it unmeetable, and graphs that grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.model.task import Edge, GroupedSpec, TaskError
from microvm_orchestrator.store.base import (
    Address,
    CancelTasks,
    Failed,
    Released,
    RetryTasks,
    UpdateTask,
)
from storing import (
    ALICE,
    claim,
    fail,
    fail_next,
    finish,
    gate,
    get,
    run_next,
    states,
    submit,
    take,
    task,
    told_of,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

    from microvm_orchestrator.store.base import Store


def edge(upstream: str, on: str = "success", **where: Any) -> Edge:
    return Edge.model_validate({"task": upstream, "on": on, "where": where or None})


async def end(store: Store, ends: dict[str, str]) -> None:
    """Claim all ready tasks and let each end as told: done, failed, or not yet."""
    held = {taken.key: taken for taken in [await take(store) for _ in ends]}
    for key, how in ends.items():
        if how == "done":
            await finish(store, held[key])
        elif how == "failed":
            await fail(store, held[key])


@pytest.mark.parametrize(
    ("need", "ends", "state"),
    [
        ("all", ["done", "done", "held"], "blocked"),
        ("all", ["done", "done", "done"], "ready"),
        ("all", ["done", "failed", "held"], "cancelled"),
        ("any", ["held", "held", "held"], "blocked"),
        ("any", ["held", "done", "held"], "ready"),
        ("any", ["failed", "failed", "done"], "ready"),
        ("any", ["failed", "failed", "held"], "blocked"),
        ("any", ["failed", "failed", "failed"], "cancelled"),
        (2, ["done", "held", "held"], "blocked"),
        (2, ["done", "failed", "held"], "blocked"),
        (2, ["done", "failed", "done"], "ready"),
        (2, ["failed", "failed", "held"], "cancelled"),
        # A share rounds up: 34 % of three are two, as are 60 %; 67 % are all.
        ("34%", ["done", "held", "held"], "blocked"),
        ("60%", ["done", "done", "held"], "ready"),
        ("67%", ["done", "done", "held"], "blocked"),
        ("33%", ["done", "held", "held"], "ready"),
        ("100%", ["done", "done", "failed"], "cancelled"),
    ],
)
async def test_a_gate_opens_when_enough_of_its_tasks_are_done_and_no_sooner(
    store: Store, need: str | int, ends: list[str], state: str
) -> None:
    keys = ["a", "b", "c"]
    await submit(
        store, *(task(key) for key in keys), task("x", gate(need, *keys), on_unmet="cancel")
    )
    await end(store, dict(zip(keys, ends, strict=True)))
    assert (await states(store))["x"] == state


@pytest.mark.parametrize(
    ("on", "how", "state"),
    [
        ("success", "done", "ready"),
        ("success", "failed", "cancelled"),
        ("success", "cancelled", "cancelled"),
        ("failure", "done", "cancelled"),
        ("failure", "failed", "ready"),
        ("failure", "cancelled", "cancelled"),
        ("finish", "done", "ready"),
        ("finish", "failed", "ready"),
        ("finish", "cancelled", "ready"),
    ],
)
async def test_an_edge_is_met_by_the_end_it_asks_for_only(
    store: Store, on: str, how: str, state: str
) -> None:
    await submit(store, task("a"), task("x", edge("a", on), on_unmet="cancel"))
    held = await take(store)
    if how == "cancelled":
        await store.amend(Address("a"), CancelTasks(), ALICE)
    else:
        await (finish if how == "done" else fail)(store, held)
    assert (await states(store))["x"] == state
    # One that is submitted afterwards is judged alike.
    await submit(store, task("late", edge("a", on), on_unmet="cancel"))
    assert (await states(store))["late"] == state


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ({"field": "ok"}, True),
        ({"field": "ok", "op": "ne", "value": True}, False),
        ({"field": "tests.failed", "op": "eq", "value": 0}, True),
        # In JSON `false` is not 0.
        ({"field": "tests.failed", "op": "eq", "value": False}, False),
        ({"field": "tests.share", "op": "ge", "value": 0.9}, True),
        ({"field": "tests.share", "op": "gt", "value": 0.95}, False),
        ({"field": "tests.share", "op": "lt", "value": "1"}, False),
        ({"field": "branch", "op": "in", "value": ["main", "dev"]}, True),
        ({"field": "branch", "op": "lt", "value": "zoo"}, True),
        ({"field": "list.1", "op": "eq", "value": "b"}, True),
        ({"field": "list.9", "op": "exists", "value": False}, True),
        ({"field": "tests.none", "op": "exists"}, False),
        ({"field": "tests.none", "op": "ne", "value": 1}, False),
        ({"field": "ok.deeper", "op": "exists"}, False),
    ],
)
async def test_an_edge_may_look_into_the_result(
    store: Store, where: dict[str, Any], passes: bool
) -> None:
    result: JsonValue = {
        "ok": True,
        "tests": {"failed": 0, "share": 0.95},
        "branch": "main",
        "list": ["a", "b"],
    }
    await submit(store, task("a"), task("x", edge("a", **where), on_unmet="cancel"))
    await finish(store, await take(store), result)
    await submit(store, task("late", edge("a", **where), on_unmet="cancel"))
    expected = "ready" if passes else "cancelled"
    found = await states(store)
    assert (found["x"], found["late"]) == (expected, expected)


async def test_a_result_is_no_help_to_a_test_when_the_task_failed(store: Store) -> None:
    await submit(store, task("a"), task("x", edge("a", field="ok", op="exists", value=False)))
    held = await take(store)
    await store.settle(held.ref, Failed(TaskError(), retryable=False), ALICE)
    assert (await get(store, "x")).reason == f"dependency unmet: {held.task.task_id} failed"


async def test_several_gates_must_all_be_open(store: Store) -> None:
    await submit(
        store,
        *(task(key) for key in "abcd"),
        task("x", "a", gate("any", "b", "c"), edge("d", "finish")),
    )
    held = {taken.key: taken for taken in [await take(store) for _ in range(4)]}
    seen = ["blocked"]
    for key in ("b", "d", "c"):
        await (fail if key == "d" else finish)(store, held[key])
        seen.append((await states(store))["x"])
    unlocked = (await finish(store, held["a"])).unlocked
    assert seen == ["blocked"] * 4
    assert [made.key for made in unlocked] == ["x"]


async def test_a_diamond_is_opened_once_by_the_last_of_its_sides(store: Store) -> None:
    await submit(store, task("top"), task("l", "top"), task("r", "top"), task("end", "l", "r"))
    top = await finish(store, await take(store))
    assert {made.key for made in top.unlocked} == {"l", "r"}
    assert (await finish(store, await take(store))).unlocked == ()
    last = await finish(store, await take(store))
    assert [made.key for made in last.unlocked] == ["end"]
    end_id = last.unlocked[0].task_id
    assert await told_of(store, end_id) == ["task.submitted", "task.ready"]


async def test_a_task_that_is_ready_already_is_not_unlocked_again(store: Store) -> None:
    await submit(store, task("a"), task("b"), task("x", gate("any", "a", "b"), priority="low"))
    first, second = await take(store), await take(store)
    assert [made.key for made in (await finish(store, first)).unlocked] == ["x"]
    assert (await finish(store, second)).unlocked == ()


async def test_failure_travels_down_as_each_task_asks(store: Store) -> None:
    await submit(
        store,
        task("a"),
        task("cancels", "a", on_unmet="cancel"),
        task("fails", "cancels", on_unmet="fail"),
        task("handles", edge("fails", "failure")),
        task("sweeps-up", edge("cancels", "finish")),
        task("waits", "a"),
        task("waits-too", "waits"),
    )
    held = await take(store)
    settled = await fail(store, held)
    assert {made.key for made in settled.unlocked} == {"handles", "sweeps-up"}
    assert await states(store) == {
        "a": "failed",
        "cancels": "cancelled",
        "fails": "failed",
        "handles": "ready",
        "sweeps-up": "ready",
        "waits": "blocked",
        "waits-too": "blocked",
    }
    stuck = await get(store, "waits")
    assert stuck.reason == f"dependency unmet: {held.task.task_id} failed"
    assert await told_of(store, stuck.task_id) == ["task.submitted", "task.stuck"]
    assert (await get(store, "waits-too")).reason is None


async def test_a_wide_fan_opens_all_at_once(store: Store) -> None:
    await submit(store, task("a"), *(task(f"x{i}", "a") for i in range(2000)))
    settled = await finish(store, await take(store))
    assert len(settled.unlocked) == 2000


async def test_a_long_chain_is_given_up_to_its_end(store: Store) -> None:
    chain = [task(f"c{i}", f"c{i - 1}", on_unmet="cancel") for i in range(1, 2000)]
    await submit(store, task("c0"), *chain)
    await fail_next(store)
    assert (await claim(store)).verdict == "all_done"


# Graphs that grow


async def test_children_are_waited_for_by_whoever_waits_for_their_parent(store: Store) -> None:
    await submit(store, task("p"), task("d", "p"), task("either", gate("any", "p", "q")), task("q"))
    parent = await take(store)
    await submit(store, task("c1", child=True), task("c2", child=True), under=parent.ref)
    assert (await get(store, "c1")).parent_id == parent.task.task_id
    await finish(store, parent)
    # One of several is enough for `either`, so it does not wait for the children.
    assert {key: state for key, state in (await states(store)).items() if state != "done"} == {
        "d": "blocked",
        "either": "ready",
        "q": "ready",
        "c1": "ready",
        "c2": "ready",
    }
    for key in ("q", "either", "c1"):
        assert await run_next(store) in {"q", "either", "c1", "c2"}, key
    assert (await states(store))["d"] == "blocked"
    await run_next(store)
    assert (await states(store))["d"] == "ready"


async def test_grandchildren_are_waited_for_too(store: Store) -> None:
    await submit(store, task("p"), task("d", "p"))
    parent = await take(store)
    await submit(store, task("c", child=True), under=parent.ref)
    await finish(store, parent)
    child = await take(store)
    await submit(store, task("g", child=True), under=child.ref)
    await finish(store, child)
    assert (await states(store))["d"] == "blocked"
    assert await run_next(store) == "g"
    assert (await states(store))["d"] == "ready"


async def test_a_part_that_comes_after_the_whole_waits_for_no_other_part(store: Store) -> None:
    await submit(store, task("p"))
    parent = await take(store)
    await submit(store, task("c", child=True), under=parent.ref)
    child = await take(store)
    parts = task("g1", "p", child=True), task("g2", "p", child=True), task("g3", child=True)
    await submit(store, *parts, under=child.ref)
    await submit(store, task("g4", child=True), under=child.ref)
    await finish(store, parent)
    found = await states(store)
    assert [found[key] for key in ("g1", "g2", "g3", "g4")] == ["ready"] * 4


async def test_one_who_comes_later_waits_for_the_unfinished_children_too(store: Store) -> None:
    await submit(store, task("p"))
    parent = await take(store)
    await submit(store, task("c", child=True), under=parent.ref)
    await finish(store, parent)
    await submit(store, task("d", "p"), task("f", edge("p", "finish")))
    assert (await states(store))["d"] == "blocked"
    await fail_next(store)
    found = await states(store)
    assert (found["d"], found["f"]) == ("blocked", "ready")
    assert (await get(store, "d")).reason is not None


async def test_a_follow_up_comes_after_the_task_that_added_it(store: Store) -> None:
    await submit(store, task("p"))
    parent = await take(store)
    await submit(store, task("next"), under=parent.ref)
    assert (await states(store))["next"] == "blocked"
    assert [made.key for made in (await finish(store, parent)).unlocked] == ["next"]


async def test_only_the_holder_of_a_task_may_grow_the_graph_under_it(store: Store) -> None:
    await submit(store, task("p"))
    parent = await take(store)
    await finish(store, parent)
    with pytest.raises(errors.LeaseLost):
        await submit(store, task("c", child=True), under=parent.ref)
    assert await states(store) == {"p": "done"}


async def test_a_graph_grows_within_the_group_of_the_task_that_adds_to_it(store: Store) -> None:
    await submit(store, task("p", group="one"))
    parent = await take(store)
    await submit(store, task("c", child=True), under=parent.ref)
    assert (await get(store, "c", "one")).group == "one"


async def test_a_task_can_be_put_before_unclaimed_ones(store: Store) -> None:
    await submit(store, task("a"), task("b", "a"))
    await submit(store, task("first", before=["a", "b"]))
    assert await states(store) == {"a": "blocked", "b": "blocked", "first": "ready"}
    assert await told_of(store, (await get(store, "a")).task_id) == [
        "task.submitted",
        "task.blocked",
    ]
    assert [await run_next(store) for _ in range(3)] == ["first", "a", "b"]


async def test_a_task_cannot_be_put_before_a_claimed_one(store: Store) -> None:
    await submit(store, task("a"))
    held = await take(store)
    with pytest.raises(errors.StateForbids):
        await submit(store, task("first", before=["a"]))
    await finish(store, held)
    with pytest.raises(errors.StateForbids):
        await submit(store, task("first", before=["a"]))
    assert await states(store) == {"a": "done"}


async def test_rewiring_a_task_leaves_what_others_put_before_it(store: Store) -> None:
    await submit(store, task("a"), task("b", "a"), task("c"))
    await submit(store, task("first", before=["b"]))
    change = UpdateTask(GroupedSpec(depends_on=["c"]), frozenset({"depends_on"}))
    await store.amend(Address("b"), change, ALICE)
    b = await get(store, "b")
    waits = {(await get(store, key)).task_id for key in ("c", "first")}
    assert set(b.waiting_for) == waits


async def test_a_child_that_fails_holds_up_its_parents_dependents_until_it_is_retried(
    store: Store,
) -> None:
    await submit(store, task("p"), task("d", "p"))
    parent = await take(store)
    await submit(store, task("c", child=True), under=parent.ref)
    await finish(store, parent)
    await fail_next(store)
    assert (await claim(store)).verdict == "deadlocked"
    await store.amend(Address("c"), RetryTasks(), ALICE)
    assert await run_next(store) == "c"
    assert await run_next(store) == "d"


async def test_a_task_that_runs_is_not_held_up_by_children_of_one_that_is_retried_behind_it(
    store: Store,
) -> None:
    await submit(store, task("p"), task("d", edge("p", "finish")))
    await fail_next(store)
    running = await take(store)
    await store.amend(Address("p"), RetryTasks(), ALICE)
    parent = await take(store, "w2")
    await submit(store, task("c", child=True), under=parent.ref)
    # Given back, it is ready for another at once, as it was when it was claimed.
    await store.settle(running.ref, Released(), ALICE)
    assert await states(store) == {"p": "running", "d": "ready", "c": "ready"}
