"""Teams: templates that are looked at, and teams that are spawned of them.

Above are the front ends; below, the shelf of templates, which is read anew each time, and the teams
of this host, of which all members come to be or none.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
from pydantic import Field, JsonValue

from microvm_orchestrator.agents.teams import briefing
from microvm_orchestrator.agents.teams.shelf import read_teams
from microvm_orchestrator.conversations.spawn import Spawn
from microvm_orchestrator.conversations.teams import TeamWish
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.agent import Character, Home, Program
from microvm_orchestrator.model.agent_budget import AgentBudget, AgentMeasure, field_of
from microvm_orchestrator.model.agent_role import BrokenFile
from microvm_orchestrator.model.coordination import TASK_MOST
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.team import Team, TeamBrief, TeamMember, TeamTemplate
from microvm_orchestrator.service.agents import AgentRef
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.roles import find_role
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm_orchestrator.agents.shelf import Shelf
    from microvm_orchestrator.operations import Report

TeamRef = Annotated[str, Field(min_length=1, max_length=100, description="its name or an alias")]
# With a dash and the name of a member it is still the name of an agent.
_PREFIX_MOST = 36


class NoTeamFilter(Request):
    """No parameters."""


class NamedTeam(Request):
    """A template of a team."""

    name: TeamRef


class TeamList(Answer):
    """The templates there are."""

    items: list[TeamBrief]
    broken: list[BrokenFile] = Field(
        description="files of the folder that are no templates, and why"
    )


class SpawnTeam(Program, Home, AgentBudget, Request):
    """A team to spawn; what is said of a program, a home and a budget holds for each of them.

    But for limits of a tree: they are the lead's, to whom all others belong.
    """

    template: TeamRef
    task: Annotated[str, Field(min_length=1, max_length=TASK_MOST)] | None = Field(
        default=None, description="what the lead is told, with who its members are"
    )
    prefix: (
        Annotated[str, Field(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{_PREFIX_MOST - 1}}}$")]
        | None
    ) = Field(
        default=None,
        description="with which their names begin, as in `shop-backend`; by default the name of "
        "the template, with a number where that is taken",
    )
    parent: AgentRef | None = Field(
        default=None, description="the agent that the lead belongs to, and ends with"
    )
    wait_s: WaitS = USUAL_WAIT_S


async def _shelf(service: Service) -> Shelf[TeamTemplate]:
    return await anyio.to_thread.run_sync(read_teams, service.settings.teams_folder)


@declare("team_list", "GET /v1/teams", role=Role.VIEWER, effect=Effect.READ)
async def team_list(service: Service, caller: Caller, request: NoTeamFilter) -> TeamList:
    """List the templates that a team can be spawned of: those that ship, and this host's own.

    This host's own lie in the folder of the setting agents.teams_dir, which is read each time.
    """
    del caller, request
    shelf = await _shelf(service)
    return TeamList(items=shelf.briefs(TeamBrief), broken=list(shelf.broken.values()))


@declare("team_get", "GET /v1/teams/{name}", role=Role.VIEWER, effect=Effect.READ)
async def team_get(service: Service, caller: Caller, request: NamedTeam) -> TeamTemplate:
    """Look at a template of a team: who is in it, and how they work together."""
    del caller
    return (await _shelf(service)).find(request.name)


@declare("team_spawn", "POST /v1/teams", role=Role.OPERATOR, waits=True)
async def team_spawn(service: Service, caller: Caller, request: SpawnTeam) -> Operation:
    """Spawn a team: a lead, and members that belong to it, each in a machine of its own.

    All of them come to be, or none: whoever was begun is ended again when one fails, and when the
    daemon dies in between. The lead is told who its members are, and the task. The operation's
    result is the team as soon as all can be talked to.
    """
    by = actor(caller, "team_spawn")
    team = (await _shelf(service)).find(request.template)
    prefix = request.prefix or _free_prefix(service, team)
    spawns = [
        await _spawn(service, request, team, member, prefix)
        for member in (team.lead, *team.members)
    ]

    async def work(report: Report) -> JsonValue:
        wish = TeamWish(spawns[0], spawns[1:])
        lead, *members = await service.host.teams.spawn(wish, by, report)
        told = None
        if request.task is not None:
            text = briefing.task_of(team, prefix, request.task)
            told = await service.host.agents.send(lead.agent_id, text, by)
        made = Team(
            template=team.name,
            prefix=prefix,
            lead=lead,
            members=members,
            message_id=told and told.message_id,
        )
        return made.model_dump(mode="json")

    return await long_call(service, caller, "team_spawn", prefix, request.wait_s, work)


async def _spawn(
    service: Service, request: SpawnTeam, team: TeamTemplate, member: TeamMember, prefix: str
) -> Spawn:
    """Make of a member an agent to spawn. Raises: InvalidInput for a role that is not there."""
    role = await find_role(service, member.role)
    leads = member is team.lead
    program = request.model_dump(include=set(Program.model_fields))
    return Spawn(
        name=briefing.agent_name(prefix, member),
        parent=request.parent if leads else None,
        character=Character(
            **program,
            role=role.name,
            system_prompt=briefing.for_lead(team, prefix)
            if leads
            else briefing.for_member(team, member, prefix),
        ),
        home=Home.model_validate(request.model_dump(include=set(Home.model_fields))),
        budget=_budget(request, leads=leads),
        role_prompt=role.prompt,
    )


def _budget(request: SpawnTeam, *, leads: bool) -> AgentBudget:
    """Give each its own limits, and the lead those of the tree, which is all of them."""
    of_tree = {field_of(measure, tree=True) for measure in AgentMeasure}
    fields = set(AgentBudget.model_fields) - (set() if leads else of_tree)
    return AgentBudget.model_validate(request.model_dump(include=fields))


def _free_prefix(service: Service, team: TeamTemplate) -> str:
    """Find a prefix with which nobody's name of this team is taken."""
    taken = {each.name for each in service.host.agents.living(SYSTEM)}
    return _unused(team.name[: _PREFIX_MOST - 4], (team.lead, *team.members), taken)


def _unused(stem: str, members: Sequence[TeamMember], taken: set[str]) -> str:
    for number in count(1):
        prefix = stem if number == 1 else f"{stem}-{number}"
        if not any(briefing.agent_name(prefix, each) in taken for each in members):
            return prefix
    raise AssertionError  # there are more numbers than agents


CALLS: tuple[Call, ...] = (team_list, team_get, team_spawn)
