"""Which tasks of the graph an agent may do, as a worker."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.access import Scope
from microvm_orchestrator.model.values import Capability, Flag, Name


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Claims(_Part):
    """Whether an agent is to do tasks, and which."""

    works: Flag = Field(
        default=False,
        description="whether it may claim tasks that you may see, as a worker of its own",
    )
    groups: Annotated[list[Name], Field(max_length=64)] = Field(
        default=[], description="where it `works`, tasks of these groups only; none: of any"
    )
    capabilities: Annotated[list[Capability], Field(max_length=256)] = Field(
        default=[], description="where it `works`, what it can do; its role is offered too"
    )


class Works(_Part):
    """Which tasks an agent may claim."""

    groups: list[str] = Field(default=[], description="of these only; none: of any")
    capabilities: list[str] = []
    scope: Scope = Field(description="of whoever spawned it, as that was then")

    def narrowed(self, groups: list[str]) -> Works | None:
        """Make the same for these groups; None where that would be more."""
        if self.groups and not set(groups) <= set(self.groups):
            return None
        return self.model_copy(update={"groups": groups or self.groups})
