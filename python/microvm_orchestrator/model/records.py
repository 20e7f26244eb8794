"""What the store keeps besides tasks, and who is written down as having changed it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from microvm_orchestrator.model.access import Role, Scope


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does what through which door: the author of events and audit rows."""

    name: str
    role: Role
    via: str
    action: str
    scope: Scope = field(default_factory=Scope)

    def sees(self, *, owner: str, labels: dict[str, str]) -> bool:
        return self.scope.sees(owner=owner, labels=labels, caller=self.name)

    def sees_of(self, owner: str) -> bool:
        """Whether they may know of what belongs to somebody, and of nobody else."""
        return self.scope.everything or owner == self.name


# The clock's own doings: leases that run out, tasks that fall due, rows past their age.
SYSTEM = Actor(name="system", role=Role.ADMIN, via="clock", action="sweep")


@dataclass(frozen=True, slots=True)
class Record:
    """A small named document: a template, a token, a webhook. `version` counts its changes."""

    kind: str
    id: str
    body: dict[str, JsonValue]
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One line of the audit log."""

    seq: int
    at: float
    actor: str
    role: str
    via: str
    action: str
    target: str
    outcome: str


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """An external claimant, known from what it declared and from what it did."""

    name: str
    principal: str
    capabilities: tuple[str, ...]
    roles: tuple[str, ...]
    labels: dict[str, str]
    draining: bool
    registered_at: float
    seen_at: float
    seen_until: float
    lost: bool
