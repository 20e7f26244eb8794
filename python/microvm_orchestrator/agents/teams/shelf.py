"""All templates of teams: those that come with this program, and those in a folder of its user."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from microvm_orchestrator.agents.shelf import Shelf, fill_shelf, read_shipped
from microvm_orchestrator.agents.teams.text import parse_team

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.model.team import TeamTemplate


def read_teams(folder: Path) -> Shelf[TeamTemplate]:
    """Read all templates; a folder that is not there has none."""
    return fill_shelf("team", shipped_teams(), folder, parse_team)


@cache
def shipped_teams() -> dict[str, TeamTemplate]:
    """The templates that come with this program, by their names."""
    return read_shipped("microvm_orchestrator.agents.teams", parse_team)
