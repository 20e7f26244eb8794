"""Runs that are paused at a limit, as a client sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from machines import LONG_S

if TYPE_CHECKING:
    from system.living import Stage


def paused_at(stage: Stage, task_id: str, *, times: int = 1) -> dict[str, Any]:
    """Wait until a run was paused so often and its machine stands still; why it does."""
    found = _heard(stage, "run.paused", f"{task_id}.1", times)
    run: dict[str, Any] = stage.ask("run_get", task_id=task_id)["run"]
    # That a run is paused is written down before its machine is.
    _heard(stage, "machine.paused", run["machine_id"], times)
    paused: dict[str, Any] = run["paused"]
    told = {name: paused[name] for name in ("measure", "used", "limit")}
    assert told.items() <= found[-1]["body"].items()
    return paused


def _heard(stage: Stage, kind: str, subject: str, times: int) -> list[dict[str, Any]]:
    """Wait until something was told so often."""
    asked: dict[str, Any] = {"kinds": [kind], "subjects": [subject]}
    found: list[dict[str, Any]] = []
    while len(found) < times:
        heard = stage.ask("event_wait", **asked, timeout_s=LONG_S)
        assert heard["events"], stage.told(subject)
        found += heard["events"]
        asked["after"] = heard["cursor"]
    return found
