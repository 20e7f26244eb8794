"""An agent as it is asked for.

Above are the agents of this host; below, their models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microvm_orchestrator.model.agent import Character, Home
    from microvm_orchestrator.model.agent_budget import AgentBudget
    from microvm_orchestrator.model.agent_claims import Works
    from microvm_orchestrator.model.agent_work import Assignment
    from microvm_orchestrator.model.supervision import Supervise


@dataclass(frozen=True, slots=True)
class Spawn:
    """An agent as it is asked for."""

    name: str | None
    parent: str | None
    character: Character
    home: Home
    budget: AgentBudget
    role_prompt: str | None = None
    title: str | None = None
    # Known before it is written down, for whoever writes down first whom it begins.
    agent_id: str | None = None
    assignment: Assignment | None = None
    works: Works | None = None
    supervise: Supervise | None = None
    ephemeral: bool = False
