"""Agents that live, for tests: where they are let to a model, spawned and talked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from claude_image import KEY, MEMORY_MIB, NAME, VCPUS
from machines import LONG_S

if TYPE_CHECKING:
    from system.living import Stage

HOME = {"image": NAME, "memory_mib": MEMORY_MIB, "vcpus": VCPUS}


def let_in(stage: Stage) -> None:
    """Give the daemon what the model asks for."""
    stage.ask("credential_set", name="model", kind="anthropic-api-key", value=KEY)


def said_to(stage: Stage, agent: str, text: str) -> dict[str, Any]:
    return answer_of(stage, stage.ask("agent_send", agent=agent, text=text, wait_s=0))


def answer_of(stage: Stage, message: dict[str, Any]) -> dict[str, Any]:
    """Wait for an answer, which takes long where the host has much else to do."""
    asked = {"message_id": message["message_id"], "timeout_s": LONG_S}
    for _ in range(4):
        message = stage.ask("agent_wait", **asked)
        if message["state"] not in {"queued", "delivered"}:
            break
    return message
