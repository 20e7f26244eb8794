"""Events as people read them: one line each.

Above sit `event`, `task watch` and `task history`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from microvm_orchestrator.cli.output import cell

# Said by the line in other words already.
_SAID = {"task_id", "key", "state", "was"}


def event_line(event: dict[str, Any]) -> str:
    """Write an event: when, its number, what, to what, and what it tells beside."""
    body = told(event)
    at = datetime.fromisoformat(event["at"]).astimezone()
    words = [
        f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}",
        f"{event['seq']:>6}",
        f"{event['kind']:<15}",
        f"{body.get('key') or event['subject']:<16}",
        f"{change_of(body):<18}",
        *(
            f"{name}={cell(name, value)}"
            for name, value in body.items()
            if name not in _SAID and value not in (None, "", [], {})
        ),
        f"by {event['actor']}",
    ]
    return "  ".join(word.replace("\n", " ") for word in words)


def told(event: dict[str, Any]) -> dict[str, Any]:
    """What an event tells of its subject, which other kinds than tasks need not do."""
    body: object = event["body"]
    return cast("dict[str, Any]", body) if isinstance(body, dict) else {}


def change_of(body: dict[str, Any]) -> str:
    """The state a task came to, and from which it came."""
    was, state = body.get("was"), body.get("state")
    if not state:
        return ""
    return f"{was} -> {state}" if was and was != state else str(state)
