"""What those of a team are told of it, in words. Pure; above is whoever spawns one."""

from __future__ import annotations

from microvm_orchestrator.model.team import TeamMember, TeamTemplate


def agent_name(prefix: str, member: TeamMember) -> str:
    return f"{prefix}-{member.name}"


def for_lead(team: TeamTemplate, prefix: str) -> str:
    """Tell the lead who belongs to it."""
    return (
        f"You are {agent_name(prefix, team.lead)}, the lead of a team. {_purpose(team.lead)}\n\n"
        f"To you belong these agents; talk to them by their names:\n\n{_listed(team, prefix)}\n\n"
        f"{team.prompt}"
    )


def for_member(team: TeamTemplate, member: TeamMember, prefix: str) -> str:
    """Tell a member who leads, and who else is there."""
    others = [each for each in team.members if each is not member]
    beside = f"\n\nBeside you there are:\n\n{_lines(others, prefix)}" if others else ""
    return (
        f"You are {agent_name(prefix, member)}, of a team that {agent_name(prefix, team.lead)} "
        f"leads. {_purpose(member)}{beside}\n\n{team.prompt}"
    )


def task_of(team: TeamTemplate, prefix: str, task: str) -> str:
    """Give the lead a task for all of them."""
    return (
        f"{task}\n\nYour team for this:\n\n{_listed(team, prefix)}\n\nHand them their parts, hear "
        "their answers, and answer for the whole."
    )


def _purpose(member: TeamMember) -> str:
    return f"What you are for: {member.purpose}."


def _listed(team: TeamTemplate, prefix: str) -> str:
    return _lines(team.members, prefix)


def _lines(members: tuple[TeamMember, ...] | list[TeamMember], prefix: str) -> str:
    return "\n".join(
        f"- {agent_name(prefix, each)} ({each.role}): {each.purpose}" for each in members
    )
