"""A template of a team as it is written: who leads and who is in it, then how they work together.

In the head a line says of each its name, its role and what it is for: `member: ui,
frontend_developer, Builds what people see`. Whether there is such a role is known when a team is
spawned, as roles can come later than teams. Pure; above is the shelf of all templates.
"""

from __future__ import annotations

import re

from microvm_orchestrator import errors
from microvm_orchestrator.agents.written import Said, read_written
from microvm_orchestrator.model.agent_role import Source
from microvm_orchestrator.model.names import NAME
from microvm_orchestrator.model.team import MEMBERS_MOST, TeamMember, TeamTemplate

MAX_PURPOSE = 500
# It stands behind a prefix in the name of an agent, which has no more than 64.
_SHORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,23}")


def parse_team(name: str, text: str, source: Source) -> TeamTemplate:
    """Read a template. Raises: InvalidInput, which says in which line."""
    written = read_written(name, text, "team", ("lead", "member"))
    leads = written.lines["lead"]
    if not leads:
        raise errors.InvalidInput("its head has no lead")
    for second in leads[1:]:
        raise second.wrong("says lead once more")
    if not written.lines["member"]:
        raise errors.InvalidInput("its head has no member")
    for one_more in written.lines["member"][MEMBERS_MOST:]:
        raise one_more.wrong(f"is a member more than {MEMBERS_MOST}")
    lead = _member(leads[0])
    members: list[TeamMember] = []
    for said in written.lines["member"]:
        member = _member(said)
        if member.name in {lead.name, *(each.name for each in members)}:
            raise said.wrong(f"says the name {member.name} once more")
        members.append(member)
    return TeamTemplate(
        name=name,
        description=written.description,
        aliases=written.aliases,
        source=source,
        lead=lead,
        members=tuple(members),
        prompt=written.prompt,
    )


def _member(said: Said) -> TeamMember:
    name, _, rest = (part.strip() for part in said.text.partition(","))
    role, _, purpose = (part.strip() for part in rest.partition(","))
    if not purpose:
        raise said.wrong("does not say `NAME, ROLE, what it is for`")
    if not _SHORT.fullmatch(name):
        raise said.wrong(f"{name[:64]!r} is no name of a member, which has at most 24 characters")
    if not NAME.fullmatch(role):
        raise said.wrong(f"{role[:64]!r} is no name of a role")
    if len(purpose) > MAX_PURPOSE:
        raise said.wrong(f"what it is for has more than {MAX_PURPOSE} characters")
    return TeamMember(name=name, role=role, purpose=purpose)
