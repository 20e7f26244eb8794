"""Who belongs to whom among agents, and how large a family may be."""

from __future__ import annotations

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.conversations import family
from microvm_orchestrator.model.agent import AgentState
from talking import plain_agent as agent

LEAD, ADA, BOB, CAT = agent("lead"), agent("ada", "lead"), agent("bob", "lead"), agent("cat", "ada")
ALONE = agent("alone")
LIMITS = family.Limits(depth=4, children=16)
EVERY = [LEAD, ADA, BOB, CAT, ALONE]


def test_children_and_peers_are_of_one_step_and_all_below_of_any_number() -> None:
    assert family.children(EVERY, LEAD) == [ADA, BOB]
    assert family.peers(EVERY, ADA) == [BOB]
    assert family.peers(EVERY, LEAD) == [ALONE]
    assert family.below(EVERY, LEAD) == [ADA, CAT, BOB]
    assert family.below(EVERY, CAT) == []


def test_who_has_no_parent_has_no_peers_among_others_agents() -> None:
    assert family.peers([*EVERY, agent("theirs", owner="bob")], LEAD) == [ALONE]


def test_a_tree_has_each_behind_its_parent_and_those_whose_parent_is_gone_at_its_root() -> None:
    told = [(each.name, depth) for each, depth in family.tree(EVERY)]
    assert told == [("lead", 0), ("ada", 1), ("cat", 2), ("bob", 1), ("alone", 0)]
    assert [depth for _, depth in family.tree([ADA, CAT])] == [0, 1]


def test_a_family_is_as_deep_and_a_parent_has_as_many_children_as_is_allowed() -> None:
    line = [agent("0"), *(agent(f"{n}", f"{n - 1}") for n in range(1, LIMITS.depth))]
    for parent in line[:-1]:
        family.refuse_more(line, parent, LIMITS)
    with pytest.raises(errors.TooLarge, match=f"none may stand below {LIMITS.depth}"):
        family.refuse_more(line, line[-1], LIMITS)
    many = [agent(f"c{n}", "lead") for n in range(LIMITS.children)]
    with pytest.raises(errors.TooLarge, match="children already"):
        family.refuse_more([LEAD, *many], LEAD, LIMITS)
    # Of those who are over nobody has to think.
    gone = many[0].model_copy(update={"state": AgentState.ENDED})
    family.refuse_more([LEAD, gone, *many[1:]], LEAD, LIMITS)
