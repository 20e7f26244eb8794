"""The settings of agents that live in machines and are talked to.

Above stands the configuration; below, what the value of a setting may be.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from microvm_orchestrator.setting_values import Count, Directory, Duration, Section


class Agents(Section):
    """Agents that live in machines and are talked to."""

    depth: Count = Field(
        default=4, description="How many may stand below each other, the uppermost counted too."
    )
    children: Count = Field(default=16, description="How many may belong to one at a time.")
    warm: dict[str, Count] = Field(
        default_factory=dict[str, Count],
        description="How many machines for agents of an image stand ready, by the image's name, "
        "with the usual memory, one processor and the disk that agents have; they take no slot "
        "until then.",
    )
    roles_dir: Directory | None = Field(
        default=None,
        description="The folder of this host's own roles, each a Markdown file of its name; by "
        "default `roles` in the state directory.",
    )
    teams_dir: Directory | None = Field(
        default=None,
        description="The folder of this host's own templates of teams, each a Markdown file of its "
        "name; by default `teams` in the state directory.",
    )
    supervise: Literal["off", "watch", "act"] = Field(
        default="watch",
        description="What is done about agents that do not get on, where they say nothing else: "
        "nothing, events, or help as well.",
    )
    stuck_after_s: Duration = Field(
        default=300.0,
        description="How long an agent is silent in a turn, without requests to a model, before it "
        "counts as stuck.",
    )
    waiting_after_s: Duration = Field(
        default=120.0,
        description="How long nobody speaks to an agent whose answer asks for something before it "
        "counts as waiting.",
    )
    idle_after_s: Duration = Field(
        default=3600.0, description="How long nobody speaks to an agent before it counts as idle."
    )
    looping_after: Count = Field(
        default=3,
        description="How many messages in a row fail with the same error before an agent counts "
        "as looping.",
    )
    interventions_most: Count = Field(
        default=3,
        description="How often an agent is helped before somebody above it is told, until "
        "somebody speaks to it.",
    )
    intervene_every_s: Duration = Field(
        default=60.0, description="The shortest time between two times that an agent is helped."
    )
    look_every_s: Duration = Field(default=10.0, description="How often agents are looked at.")
    last_resort: Literal["escalate", "end"] = Field(
        default="escalate",
        description="What becomes of an agent that nothing has helped: whom it belongs to is told, "
        "or it ends.",
    )
