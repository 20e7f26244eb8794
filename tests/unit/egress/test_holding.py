"""Requests that wait for a higher budget instead of being refused, and what is spent meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from egressing import PATIENCE_S, outlet
from microvm_orchestrator import errors
from microvm_orchestrator.egress.budget import Budget, Exhausted, Spent
from microvm_orchestrator.egress.usage import Tokens
from model_api import Turn, open_model_api, say

if TYPE_CHECKING:
    from pathlib import Path

    from egressing import Outlet


async def ask(out: Outlet, statuses: list[int]) -> None:
    statuses.append((await out.message()).status_code)


async def test_a_request_beyond_the_budget_waits_and_goes_out_with_a_higher_one(
    tmp_path: Path,
) -> None:
    reached = anyio.Event()
    told: list[Exhausted] = []
    statuses: list[int] = []

    async def on_exhausted(limit: Exhausted) -> None:
        told.append(limit)
        reached.set()

    given: dict[str, Any] = {
        "budget": Budget(tokens=1000),
        "holds": True,
        "on_exhausted": on_exhausted,
    }
    with anyio.fail_after(PATIENCE_S):
        async with (
            open_model_api([say("Hi.")]) as api,
            outlet(tmp_path, api=api.url, **given) as out,
            anyio.create_task_group() as group,
        ):
            await ask(out, statuses)
            for _ in range(3):
                group.start_soon(ask, out, statuses)
            await reached.wait()
            # With no more than it has taken already they wait on, and it is told anew.
            reached = anyio.Event()
            out.egress.set_budget(Budget(tokens=1250))
            await reached.wait()
            assert (len(api.requests), statuses) == (1, [200])
            out.egress.set_budget(Budget(tokens=9000))
    assert statuses == [200] * 4
    assert told == [Exhausted("tokens", 1250, 1000), Exhausted("tokens", 1250, 1250)]


async def test_what_is_under_way_is_answered_while_nothing_new_goes_out(tmp_path: Path) -> None:
    begun, go_on, shut = anyio.Event(), anyio.Event(), anyio.Event()
    statuses: list[int] = []

    async def hold(event: int) -> None:
        del event
        begun.set()
        await go_on.wait()

    async def close(out: Outlet) -> None:
        await out.egress.shut()
        shut.set()

    with anyio.fail_after(PATIENCE_S):
        async with (
            open_model_api([Turn((say("Hi."),), pause=hold)]) as api,
            outlet(tmp_path, api=api.url, holds=True) as out,
            anyio.create_task_group() as group,
        ):
            group.start_soon(ask, out, statuses)
            await begun.wait()
            group.start_soon(close, out)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(ask, out, statuses)
            assert not shut.is_set()
            go_on.set()
            await shut.wait()
            await out.told()
            assert len(api.requests) == 1
            # There is no limit, yet nothing goes out before somebody says so.
            out.egress.set_budget(Budget())
            await out.told()
            assert len(api.requests) == 2
    assert statuses == [200, 200]
    assert out.exhausted == []


async def test_the_owner_is_told_what_is_spent_whenever_it_is_more(tmp_path: Path) -> None:
    told: list[Spent] = []

    async def on_spent(spent: Spent) -> None:
        told.append(spent)
        if len(told) == 1:
            raise errors.StoreFull("no room for it")

    async with (
        open_model_api([say("Hi.")]) as api,
        outlet(tmp_path, api=api.url, on_spent=on_spent) as out,
    ):
        for _ in range(2):
            await out.message()
            await out.told()
        assert (await out.http.get("/nothing")).status_code == 403
        await out.told()
        assert out.egress.spent == told[-1]
    assert [each.requests for each in told] == [1, 2]
    assert told[1].tokens == Tokens(2000, 100, 0, 400)
