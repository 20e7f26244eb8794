"""Templates of teams: those that ship, those of a folder, and what is wrong with a file of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.agents.roles.shelf import read_shelf
from microvm_orchestrator.agents.teams import briefing
from microvm_orchestrator.agents.teams.shelf import read_teams, shipped_teams
from microvm_orchestrator.agents.teams.text import MAX_PURPOSE, parse_team
from microvm_orchestrator.model.agent_role import Source
from microvm_orchestrator.model.team import MEMBERS_MOST

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {
    "software_engineering": 6,
    "research_analysis": 5,
    "security_audit": 7,
    "data_pipeline": 5,
}
HEAD = "---\ndescription: Makes clocks.\nlead: boss, architect, Decides\n"
PAIR = f"{HEAD}member: ada, debugger, Mends\n---\nYou make clocks.\n"


def test_four_teams_ship_each_with_its_size() -> None:
    assert {name: 1 + len(team.members) for name, team in shipped_teams().items()} == SIZES


@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_team_is_of_roles_that_ship_and_is_found_by_its_longer_name(
    tmp_path: Path, name: str
) -> None:
    team = read_teams(tmp_path).find(f"{name}_team")
    assert (team.name, team.source) == (name, Source.SHIPPED)
    roles = read_shelf(tmp_path)
    for member in (team.lead, *team.members):
        assert roles.find(member.role).name == member.role
        assert not member.purpose.endswith(".")
    assert 120 <= len(team.prompt.split()) <= 350


def test_no_two_shipped_teams_say_the_same() -> None:
    said = [
        line
        for team in shipped_teams().values()
        for line in team.prompt.splitlines()
        if len(line) > 40
    ]
    assert len(said) == len(set(said))


def test_a_file_of_the_folder_is_a_team_and_takes_the_place_of_one_that_ships(
    tmp_path: Path,
) -> None:
    (tmp_path / "clocks.md").write_text(PAIR)
    (tmp_path / "data_pipeline.md").write_text(PAIR)
    (tmp_path / "broken.md").write_text(HEAD)
    shelf = read_teams(tmp_path)
    assert set(shelf.known) == {*SIZES, "clocks"}
    assert shelf.find("pipeline").source is Source.USER
    assert shelf.find("clocks").model_dump(mode="json") == {
        "name": "clocks",
        "description": "Makes clocks.",
        "aliases": [],
        "source": "user",
        "lead": {"name": "boss", "role": "architect", "purpose": "Decides"},
        "members": [{"name": "ada", "role": "debugger", "purpose": "Mends"}],
        "prompt": "You make clocks.",
    }
    with pytest.raises(errors.InvalidInput, match=r"the team broken: broken\.md: its head does"):
        shelf.find("broken")
    with pytest.raises(errors.NotFound, match="no team chess"):
        shelf.find("chess")


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("description: x\nmember: a, b, c", "its head has no lead"),
        (
            "description: x\nlead: a, b, c\nlead: d, b, c\nmember: e, b, c",
            "line 4: says lead once more",
        ),
        ("description: x\nlead: a, b, c", "its head has no member"),
        (
            "description: x\nlead: a, b, c\nmember: a, b, c",
            "line 4: says the name a once more",
        ),
        ("description: x\nlead: a, b\nmember: d, b, c", "line 3: does not say"),
        (
            "description: x\nlead: a b, c, d\nmember: d, b, c",
            "line 3: 'a b' is no name of a member",
        ),
        (
            f"description: x\nlead: {'a' * 25}, c, d\nmember: d, b, c",
            f"line 3: '{'a' * 25}' is no name of a member",
        ),
        (
            "description: x\nlead: a, ../b, c\nmember: d, b, c",
            "line 3: '../b' is no name of a role",
        ),
        (
            f"description: x\nlead: a, b, {'c' * (MAX_PURPOSE + 1)}\nmember: d, b, c",
            "line 3: what it is for has more than 500 characters",
        ),
        (
            "description: x\nlead: lead, b, c\n"
            + "\n".join(f"member: m{each}, b, c" for each in range(MEMBERS_MOST + 1)),
            "line 20: is a member more than 16",
        ),
        (
            "description: x\nchief: a, b, c",
            "line 3: there is no key 'chief'; there are description, aliases, lead and member",
        ),
    ],
)
def test_what_is_wrong_with_a_team_is_said_with_its_line(head: str, reason: str) -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        parse_team("clocks", f"---\n{head}\n---\nYou make clocks.\n", Source.USER)
    assert refused.value.message.startswith(reason)


def test_each_is_told_who_it_is_and_who_else_there_is() -> None:
    team = parse_team(
        "clocks", PAIR.replace("---\nYou", "member: bob, general, Winds\n---\nYou"), Source.USER
    )
    ada, bob = team.members
    lead = briefing.for_lead(team, "shop")
    assert "You are shop-boss, the lead of a team. What you are for: Decides." in lead
    assert "- shop-ada (debugger): Mends\n- shop-bob (general): Winds" in lead
    told = briefing.for_member(team, ada, "shop")
    assert "You are shop-ada, of a team that shop-boss leads." in told
    assert "shop-bob (general)" in told
    assert "shop-ada (debugger)" not in told
    assert "shop-ada (debugger)" in briefing.for_member(team, bob, "shop")
    assert all("You make clocks." in each for each in (lead, told))
    task = briefing.task_of(team, "shop", "Make one.")
    assert task.startswith("Make one.\n")
    assert "- shop-ada (debugger): Mends" in task
