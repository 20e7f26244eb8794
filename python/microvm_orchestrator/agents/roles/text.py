"""A role as it is written: what it is in a head, and behind it what an agent is told.

Pure; above is the shelf of all roles.
"""

from __future__ import annotations

from microvm_orchestrator.agents.written import read_written
from microvm_orchestrator.model.agent_role import AgentRole, Source


def parse_role(name: str, text: str, source: Source) -> AgentRole:
    """Read a role. Raises: InvalidInput, which says in which line."""
    written = read_written(name, text, "role")
    return AgentRole(
        name=name,
        description=written.description,
        aliases=written.aliases,
        source=source,
        prompt=written.prompt,
    )
