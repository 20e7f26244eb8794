"""Runs that are paused at a limit, as a client sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from machines import LONG_S

if TYPE_CHECKING:
    from system.living import Stage


def paused_at(stage: Stage, task_id: str, *, times: int = 1) -> dict[str, Any]:
    """Wait until a run was paused so often; why it stands still now."""
    asked: dict[str, Any] = {"kinds": ["run.paused"], "subjects": [f"{task_id}.1"]}
    found: list[dict[str, Any]] = []
    while len(found) < times:
        heard = stage.ask("event_wait", **asked, timeout_s=LONG_S)
        assert heard["events"], stage.ask("run_get", task_id=task_id)
        found += heard["events"]
        asked["after"] = heard["cursor"]
    paused: dict[str, Any] = stage.ask("run_get", task_id=task_id)["run"]["paused"]
    told = {name: paused[name] for name in ("measure", "used", "limit")}
    assert told.items() <= found[-1]["body"].items()
    return paused
