"""Teams as callers know them: templates of which some are spawned, and those that were."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.agent import Agent
from microvm_orchestrator.model.agent_role import WrittenForAgents
from microvm_orchestrator.model.values import Moment

# The kind of record that a team is stored as while it is spawned.
TEAM = "team"
# As many as may belong to one agent.
MEMBERS_MOST = 16


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TeamMember(_Part):
    """Somebody of a team."""

    name: str = Field(description="behind the prefix of the team")
    role: str = Field(description="by a name of `role_list` or an alias")
    purpose: str


class TeamBrief(WrittenForAgents):
    """A template in a list."""

    lead: TeamMember
    members: tuple[TeamMember, ...] = Field(description="beside the lead, to whom they belong")


class TeamTemplate(TeamBrief):
    """A template of a team."""

    prompt: str = Field(description="how they work together, which all of them are told")


class Team(_Part):
    """A team that was spawned."""

    template: str
    prefix: str = Field(description="with which the names of its agents begin")
    lead: Agent
    members: list[Agent]
    message_id: str | None = Field(
        default=None, description="in which the lead hears the task; none without a task"
    )


class Gathering(_Part):
    """A team that is being spawned: whom to end if it never comes to be."""

    team_id: str
    owner: str
    lead: str = Field(description="id of an agent")
    members: Annotated[list[str], Field(max_length=MEMBERS_MOST)]
    created_at: Moment
