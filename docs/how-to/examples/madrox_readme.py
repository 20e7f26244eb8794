"""The three usage examples of madrox's README, over the REST that it had: `madrox_readme.py first`.

The address is that of `microvm-orchestrator madrox`, which is where madrox was.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any

URL = os.environ.get("MADROX_URL", "http://localhost:8001")


def use(tool: str, **arguments: Any) -> dict[str, Any]:
    body = json.dumps({"tool": tool, "arguments": arguments}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/tools/execute", body, headers)
    with urllib.request.urlopen(request) as answer:
        told: dict[str, Any] = json.load(answer)
    if told.get("success") is False:
        sys.exit(told["message"])
    return told


def first() -> None:
    """Spawn a frontend developer, and send a development task."""
    instance_id = use(
        "spawn_claude",
        name="React Developer",
        role="frontend_developer",
        system_prompt="You are a React expert specializing in TypeScript and modern UI patterns.",
    )["instance_id"]
    told = use(
        "send_to_instance",
        instance_id=instance_id,
        message="Create a responsive navigation component with dropdown menus",
        timeout_seconds=600,
    )
    print(instance_id)
    print(told["response"]["response"])


def second() -> None:
    """Spawn several specialists, and coordinate them for a project."""
    architect_id = use("spawn_claude", name="System Architect", role="architect")["instance_id"]
    frontend = use("spawn_claude", name="Frontend Dev", role="frontend_developer")
    backend = use("spawn_claude", name="Backend Dev", role="backend_developer")
    task_id = use(
        "coordinate_instances",
        coordinator_id=architect_id,
        participant_ids=[frontend["instance_id"], backend["instance_id"]],
        task_description="Build a real-time chat application",
        coordination_type="parallel",
    )["task_id"]
    job = use("get_job_status", job_id=task_id, max_wait=3600)
    print(json.dumps(job))


def third() -> None:
    """Spawn with resource limits, and monitor what is used."""
    instance_id = use(
        "spawn_claude",
        name="Limited Instance",
        role="general",
        max_total_tokens=50000,
        max_cost=10.0,
        timeout_minutes=30,
    )["instance_id"]
    status = use("get_instance_status", instance_id=instance_id)["status"]
    print(instance_id)
    print(f"Tokens used: {status['total_tokens_used']}")
    print(f"Cost: ${status['total_cost']:.4f}")


if __name__ == "__main__":
    {"first": first, "second": second, "third": third}[sys.argv[1]]()
