"""Who asks, and how far they reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do, each including the ones below it: admin, operator, worker, viewer."""

    VIEWER = "viewer"
    WORKER = "worker"
    OPERATOR = "operator"
    ADMIN = "admin"

    def reaches(self, needed: Role) -> bool:
        return _RANK[self] >= _RANK[needed]


_RANK = {role: rank for rank, role in enumerate(Role)}


@dataclass(frozen=True, slots=True)
class Scope:
    """Which tasks a caller can see: all, or those it owns and those whose labels match.

    Several values of one label are alternatives; several labels must all match.
    """

    everything: bool = True
    own: bool = True
    labels: tuple[tuple[str, frozenset[str]], ...] = ()

    def sees(self, *, owner: str, labels: dict[str, str], caller: str) -> bool:
        if self.everything or (self.own and owner == caller):
            return True
        return bool(self.labels) and all(labels.get(key) in values for key, values in self.labels)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose identity was given by the kernel or by a token, never guessed."""

    name: str
    role: Role
    scope: Scope = field(default_factory=Scope)
    token_id: str | None = None

    def sees(self, *, owner: str, labels: dict[str, str]) -> bool:
        return self.scope.sees(owner=owner, labels=labels, caller=self.name)
