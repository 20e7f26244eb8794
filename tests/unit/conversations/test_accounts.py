"""What agents and those below them have taken, counted while they work and over restarts."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.conversations.accounts import Accounts, inherited
from microvm_orchestrator.model.agent import (
    Agent,
    Message,
    MessageState,
)
from microvm_orchestrator.model.agent_budget import AgentBudget, AgentMeasure, AtLimit, Taken
from microvm_orchestrator.model.run import Usage
from microvm_orchestrator.model.values import moment
from talking import plain_agent

if TYPE_CHECKING:
    from collections.abc import Sequence


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def agent(name: str, parent: str | None = None, used: int = 0, **budget: Any) -> Agent:
    return plain_agent(name, parent, budget=AgentBudget(**budget), usage=Usage(tokens_in=used))


def accounts_of(*agents: Agent, clock: Clock | None = None) -> Accounts:
    accounts = Accounts(clock or Clock())
    for each in agents:
        accounts.learn(each)
    return accounts


def heard(number: int, took_s: float | None, began: float = 0.0) -> Message:
    return Message(
        message_id=f"ada.{number}",
        agent_id="ada",
        owner="alice",
        sender="alice",
        text="x",
        state=MessageState.ANSWERED if took_s is not None else MessageState.DELIVERED,
        created_at=moment(0.0),
        began_at=moment(began),
        ended_at=None if took_s is None else moment(began) + timedelta(seconds=took_s),
    )


def test_what_children_take_counts_for_their_parents_and_for_nobody_else() -> None:
    accounts = accounts_of(
        agent("cat", "ada", used=5),
        agent("lead", used=1, tree_tokens=9),
        agent("ada", "lead", used=3),
        agent("bob", "lead"),
        agent("alone", used=100),
    )
    assert accounts.of_tree("lead").tokens == 9
    assert accounts.of_tree("ada").tokens == 8
    for each in ("lead", "ada", "bob", "cat"):
        found = accounts.reached(each)
        assert found is not None
        assert (found.agent_id, found.tree, found.measure) == ("lead", True, "tokens")
    assert accounts.reached("alone") is None
    assert accounts.below("lead") == ["lead", "ada", "bob", "cat"]


def test_a_limit_of_its_own_keeps_an_agent_alone_from_working() -> None:
    accounts = accounts_of(agent("lead", used=7, tokens=7), agent("ada", "lead"))
    found = accounts.reached("lead")
    assert found is not None
    assert found.seen_by("lead") == "its budget is used up: 7 of 7 tokens"
    assert accounts.reached("ada") is None


def test_who_is_below_a_limit_is_told_whose_it_is() -> None:
    accounts = accounts_of(agent("lead", tree_cost_usd=0.5), agent("ada", "lead"))
    accounts.metered("ada", lambda: Usage(cost_usd=0.75))
    found = accounts.of_models("ada")
    assert found is not None
    assert str(found) == (
        "agent lead's budget for it and all below it is used up: 0.75 of 0.5 cost_usd"
    )
    assert accounts.of_models("lead") is not None


def test_a_turn_counts_before_it_begins_and_its_time_while_it_lasts() -> None:
    clock = Clock()
    accounts = accounts_of(agent("ada", turns=2, wall_s=10.0), clock=clock)
    with accounts.place("ada"):
        assert accounts.taken("ada").turns == 1
    accounts.turn_began("ada", clock.now)
    accounts.metered("ada", lambda: Usage(tokens_out=7))
    clock.now += 4
    assert accounts.in_turn() == ["ada"]
    assert accounts.wall_left_s("ada") == 6
    accounts.turn_over("ada")
    clock.now += 100
    assert accounts.taken("ada") == Taken(tokens=7, turns=1, wall_s=4)
    accounts.turn_began("ada", clock.now)
    clock.now += 6
    found = accounts.reached("ada", (AgentMeasure.WALL_S,))
    assert found is not None
    assert (found.used, found.limit) == (10, 10)


def test_who_was_forgotten_meanwhile_has_taken_nothing() -> None:
    accounts = accounts_of(agent("ada", used=7))
    assert accounts.taken("ada") == accounts.of_tree("ada") == Taken(tokens=7)
    accounts.forget("ada")
    assert accounts.taken("ada") == accounts.of_tree("ada") == Taken()


def test_a_turn_that_never_began_counts_for_nothing() -> None:
    accounts = accounts_of(agent("ada", turns=1))

    def begin() -> None:
        with accounts.place("ada"):
            assert accounts.reached("ada") is not None
            raise errors.MachineFailed("no machine")

    with pytest.raises(errors.MachineFailed):
        begin()
    assert accounts.reached("ada") is None


def test_what_a_daemon_did_not_live_to_write_down_is_counted_anew() -> None:
    clock = Clock()
    accounts = accounts_of(agent("ada", used=3, turns=3), clock=clock)
    messages = [heard(1, 5.0), heard(2, 2.5), heard(3, None, began=990.0)]
    accounts.recount("ada", messages, Usage(tokens_in=11))
    assert accounts.taken("ada") == Taken(tokens=11, turns=3, wall_s=7.5)
    # It goes on with the third.
    accounts.turn_began("ada", 990.0)
    assert accounts.taken("ada").wall_s == 17.5
    # An older record takes nothing back.
    accounts.learn(agent("ada", used=3, turns=3))
    assert accounts.taken("ada").tokens == 11


def test_each_share_of_a_limit_is_told_once_and_anew_after_a_raise() -> None:
    first = agent("ada", used=85, tokens=100, warn_at=[0.5, 0.8, 0.9])
    accounts = accounts_of(first)
    told = accounts.warnings("ada")
    assert [each.key for each in told] == ["tokens 0.5", "tokens 0.8"]
    known = first.model_copy(update={"warned": [each.key for each in told]})
    accounts.learn(known)
    assert accounts.warnings("ada") == []
    budget = AgentBudget(tokens=150, warn_at=[0.5, 0.8])
    accounts.learn(first.model_copy(update={"budget": budget}))
    assert [each.key for each in accounts.warnings("ada")] == ["tokens 0.5"]


def test_a_child_gets_no_more_than_is_left_of_the_trees_above_it() -> None:
    accounts = accounts_of(
        agent("lead", used=30, tree_tokens=100, tree_turns=4, at_limit="end"),
        agent("ada", "lead", used=20, tokens=90, wall_s=60.0, tree_cost_usd=2.0, at_limit="pause"),
    )
    budget, used_up = accounts.for_child("ada")
    assert used_up is None
    assert budget == AgentBudget(tokens=50, turns=4, cost_usd=2.0, wall_s=60.0)
    assert budget.at_limit is AtLimit.PAUSE
    accounts.metered("lead", lambda: Usage(tokens_in=80))
    assert accounts.for_child("ada")[1] == "tokens"


def test_a_child_that_is_deleted_counts_once_whenever_the_daemon_ends() -> None:
    lead, ada = agent("lead", used=1), agent("ada", "lead", used=4)
    cat = agent("cat", "ada", used=2)
    accounts = accounts_of(lead, ada, cat)
    heir = lead.model_copy(update=inherited(lead, "ada", accounts.of_tree("ada"), accounts))
    assert heir.gone.tokens == 6
    # Written down, and then the daemon ends before the child is forgotten.
    accounts = accounts_of(heir, ada, cat)
    assert accounts.of_tree("lead").tokens == 7
    assert inherited(heir, "ada", accounts.of_tree("ada"), accounts) == {}
    accounts.forget("ada")
    assert accounts.of_tree("lead").tokens == 7
    bob = agent("bob", "lead", used=10)
    accounts.learn(bob)
    last = heir.model_copy(update=inherited(heir, "bob", accounts.of_tree("bob"), accounts))
    assert (last.gone.tokens, last.counted) == (16, ["bob"])


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["spawn", "spend", "delete", "restart"]),
        st.integers(min_value=0, max_value=30),
        st.integers(min_value=1, max_value=1000),
    ),
    max_size=40,
)


@given(_STEPS)
def test_a_tree_has_taken_all_that_was_ever_taken_in_it(
    steps: Sequence[tuple[str, int, int]],
) -> None:
    records = {"0": agent("0")}
    accounts = accounts_of(*records.values())
    total = 0
    for number, (deed, pick, much) in enumerate(steps, start=1):
        chosen = records[sorted(records)[pick % len(records)]]
        match deed:
            case "spawn":
                new = agent(str(number), chosen.agent_id)
                records[new.agent_id] = new
                accounts.learn(new)
            case "spend":
                used = Usage(tokens_in=chosen.usage.tokens_in + much)
                accounts.metered(chosen.agent_id, lambda used=used: used)
                accounts.turn_over(chosen.agent_id)
                records[chosen.agent_id] = chosen.model_copy(update={"usage": used})
                accounts.learn(records[chosen.agent_id])
                total += much
            case "delete":
                below = accounts.below(chosen.agent_id)
                if chosen.parent is None or len(below) > 1:
                    continue
                heir = records[chosen.parent]
                part = accounts.of_tree(chosen.agent_id)
                update = inherited(heir, chosen.agent_id, part, accounts)
                records[heir.agent_id] = heir.model_copy(update=update)
                accounts.learn(records[heir.agent_id])
                # Between the two the daemon may have ended.
                if much % 2:
                    accounts = accounts_of(*records.values())
                    assert accounts.of_tree("0").tokens == total
                del records[chosen.agent_id]
                accounts.forget(chosen.agent_id)
            case _:
                accounts = accounts_of(*records.values())
        assert accounts.of_tree("0").tokens == total
