"""Workers that wait for a task: what wakes them, and what they are told when nothing did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from calling import ADMIN, PATIENCE_S, House, house
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.service.waiting import PROGRESS_EVERY_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Act = Callable[[House], Awaitable[None]]

LONG_S = 3600.0
# A claim that nobody wakes looks again by itself, to report how far it is: whoever is answered
# sooner was woken.
WOKEN_S = PROGRESS_EVERY_S * 0.8


async def submitted(here: House) -> None:
    await here.ask("task_submit", key="x")


async def blocked(here: House) -> None:
    """Let the task wait for another, which somebody holds."""
    await here.ask("task_submit", key="first")
    await here.ask("task_submit", key="x", depends_on=["first"])
    await here.ask("task_claim", worker="other")


async def completed(here: House) -> None:
    await here.ask("task_complete", task_id="first", worker="other", token=1)


async def held(here: House) -> None:
    await here.ask("task_submit", key="x")
    await here.ask("task_claim", worker="other")


async def released(here: House) -> None:
    await here.ask("task_release", task_id="x", worker="other", token=1)


async def asks_for_more(here: House) -> None:
    await here.ask("task_submit", key="x", capabilities=["gpu"])


async def changed(here: House) -> None:
    await here.ask("task_update", task_id="x", changes={"capabilities": []})


async def nothing(here: House) -> None:
    del here


@pytest.mark.parametrize(
    ("before", "then"),
    [
        (nothing, submitted),
        (blocked, completed),
        (held, released),
        (asks_for_more, changed),
    ],
)
async def test_a_claim_that_waits_is_answered_when_a_task_can_be_had(
    tmp_path: Path, before: Act, then: Act
) -> None:
    claims: list[dict[str, Any]] = []
    async with house(tmp_path) as here:
        await before(here)
        looked = anyio.Event()

        async def progress(done: float, total: float | None, message: str) -> None:
            del done, total, message
            looked.set()

        async def claim() -> None:
            caller = Caller(ADMIN, "test", progress)
            given = {"worker": "w", "wait_s": LONG_S}
            answer = await here.service.invoke(caller, "task_claim", given)
            claims.append(answer.model_dump(mode="json"))

        with anyio.fail_after(WOKEN_S):
            async with anyio.create_task_group() as group:
                group.start_soon(claim)
                # Once it has been woken by a task that is not for it, it waits for the next one.
                while not looked.is_set():
                    await here.ask("task_submit", capabilities=["nobody-has"])
                    await anyio.wait_all_tasks_blocked()
                assert claims == []
                await then(here)
    [claimed] = claims
    assert claimed["verdict"] == "claimed"
    assert [each["task"]["key"] for each in claimed["tasks"]] == ["x"]


async def test_of_two_claims_that_wait_for_one_task_one_gets_it(tmp_path: Path) -> None:
    got: list[str] = []
    async with house(tmp_path) as here:
        answered = anyio.Event()

        async def claim(worker: str) -> None:
            answer = await here.ask("task_claim", worker=worker, wait_s=LONG_S)
            got.extend(each["task"]["key"] for each in answer["tasks"])
            answered.set()

        with anyio.fail_after(WOKEN_S):
            async with anyio.create_task_group() as group:
                for worker in ("one", "two"):
                    group.start_soon(claim, worker)
                await anyio.wait_all_tasks_blocked()
                await here.ask("task_submit", key="x")
                await answered.wait()
                await anyio.wait_all_tasks_blocked()
                assert got == ["x"]
                await here.ask("task_submit", key="y")
    assert got == ["x", "y"]


async def test_a_claim_ends_with_its_time_and_says_what_is_in_the_way(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await blocked(here)
        answer = await here.ask("task_claim", worker="w", wait_s=0.05)
    assert (answer["verdict"], answer["tasks"]) == ("blocked", [])


async def test_a_deadlock_is_told_at_once_for_waiting_frees_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await here.ask("task_submit", key="first")
        await here.ask("task_submit", key="x", depends_on=["first"])
        await here.ask("task_cancel", task_id="first")
        with anyio.fail_after(PATIENCE_S):
            answer = await here.ask("task_claim", worker="w", wait_s=LONG_S)
    assert answer["verdict"] == "deadlocked"
    assert [task["key"] for task in answer["stuck"]] == ["x"]
