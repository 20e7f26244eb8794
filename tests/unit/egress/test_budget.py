"""Budgets: where requests stop, what the guest and the owner are told, how they go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from egressing import outlet
from microvm_orchestrator.config import Price
from microvm_orchestrator.egress.budget import Account, Budget, Exhausted, Spent
from microvm_orchestrator.egress.prices import LISTED, Prices
from microvm_orchestrator.egress.usage import Tokens
from model_api import open_model_api, say

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("budget", "measure"),
    [
        (Budget(tokens=2500), "tokens"),
        (Budget(cost_usd=0.007), "cost_usd"),
        (Budget(requests=2), "requests"),
    ],
)
async def test_once_the_budget_is_used_up_nothing_goes_upstream(
    tmp_path: Path, budget: Budget, measure: str
) -> None:
    async with (
        open_model_api([say("Hi.")]) as api,
        outlet(tmp_path, api=api.url, budget=budget) as out,
    ):
        statuses = [(await out.message()).status_code for _ in range(5)]
        assert statuses == [200, 200, 402, 402, 402]
        assert len(api.requests) == 2
        assert [each.measure for each in out.exhausted] == [measure]
        told = [await out.told() for _ in range(5)]
    assert [each.refused is None for each in told] == [True, True, False, False, False]


async def test_the_guest_is_told_in_a_way_that_ends_its_turn(tmp_path: Path) -> None:
    async with (
        open_model_api([say("Hi.")]) as api,
        outlet(tmp_path, api=api.url, budget=Budget(tokens=0)) as out,
    ):
        ours = await out.message()
        theirs = await out.http.post("/v1/responses", json={"input": "x"})
    for answer in (ours, theirs):
        assert answer.status_code == 402
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["message"] == (
            "budget_exhausted: the budget is used up: 0 of 0 tokens"
        )
    assert ours.json()["type"] == "error"


async def test_a_higher_budget_lets_requests_through_and_its_end_is_told_anew(
    tmp_path: Path,
) -> None:
    async with (
        open_model_api([say("Hi.")]) as api,
        outlet(tmp_path, api=api.url, budget=Budget(requests=1)) as out,
    ):
        assert (await out.message()).status_code == 200
        assert out.egress.exhausted == Exhausted("requests", 1, 1)
        # Nobody was refused yet, so nobody is told.
        assert out.exhausted == []
        assert (await out.message()).status_code == 402
        out.egress.set_budget(Budget(requests=2))
        assert out.egress.exhausted is None
        assert [(await out.message()).status_code for _ in range(3)] == [200, 402, 402]
        assert out.exhausted == [Exhausted("requests", 1, 1), Exhausted("requests", 2, 2)]


async def test_what_was_spent_before_counts(tmp_path: Path) -> None:
    spent_all = Budget(requests=1)
    async with open_model_api([say("Hi.")]) as api:
        async with outlet(tmp_path, api=api.url, budget=spent_all) as out:
            await out.message()
            spent = out.egress.spent
        async with outlet(tmp_path, api=api.url, budget=spent_all, spent=spent) as out:
            assert (await out.message()).status_code == 402
        assert len(api.requests) == 1
    assert spent == Spent(1, Tokens(1000, 50, 0, 200), spent.cost_usd)
    assert spent.cost_usd == pytest.approx(0.00381)


async def test_requests_beside_each_other_pass_a_limit_on_requests_by_none(tmp_path: Path) -> None:
    async with (
        open_model_api([say("Hi.")]) as api,
        outlet(tmp_path, api=api.url, budget=Budget(requests=5)) as out,
    ):
        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(out.message)
        assert len(api.requests) == 5
        assert len(out.exhausted) == 1


def test_the_price_of_the_longest_beginning_holds_and_the_operators_before_ours() -> None:
    million = Tokens(1_000_000, 1_000_000, 1_000_000, 1_000_000)
    prices = Prices({"claude-opus-4-5-x": Price(input=1, output=2)})
    assert prices.cost_usd("claude-opus-4-1-20250805", million) == 15 + 75 + 18.75 + 1.5
    assert prices.cost_usd("claude-opus-4-5-20251101", million) == 5 + 25 + 6.25 + 0.5
    assert prices.cost_usd("claude-opus-4-5-x1", million) == 1 + 2 + 1 + 1
    assert prices.cost_usd("other", million) is None
    assert prices.cost_usd(None, million) is None
    assert prices.at_most_usd(million) == 15 + 75 + 18.75 + 1.5


def test_every_listed_price_is_one() -> None:
    for name, price in LISTED.items():
        assert 0 < price.input < price.output, name
        assert (price.cache_read or 0) <= price.input <= (price.cache_write or 0), name


def test_a_model_that_nobody_knows_uses_up_a_budget_of_money() -> None:
    account = Account(Budget(cost_usd=0.01), Prices({}))
    assert account.charge("unheard-of", Tokens(1000, 1000)) is None
    exhausted = account.exhausted()
    assert exhausted is not None
    assert (exhausted.measure, exhausted.used) == ("cost_usd", pytest.approx(0.09))
    assert account.spent.cost_usd == 0
