"""Events of a real kernel's trouble over the end of one daemon and the beginning of the next."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Any

import pytest

import hosted
from machines import LONG_S
from system.living import Stage, furnish, staged

LONE = """
cluster_name: lone
network: {name: lan, subnet: 10.9.0.0/24}
nodes: [{name: one, memory_mb: 160, ip: 10.9.0.10}]
"""
EATS = 'eaten = [b"x" * (1 << 20) for _ in range(1 << 16)]'
# When nobody is there any more to ask it to.
DIES_LATER = "(sleep 5; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &"


def told(stage: Stage, cluster: str) -> list[tuple[str, str | None]]:
    """Give what was told of a cluster's kernels, in its order."""
    asked: dict[str, Any] = {"subjects": [cluster], "kinds": ["kernel-log.*"]}
    events = stage.ask("event_wait", **asked)["events"]
    return [(each["kind"].partition(".")[2], each["body"].get("trouble")) for each in events]


@pytest.mark.long
def test_the_next_daemon_tells_of_what_came_meanwhile_and_of_nothing_twice(tmp_path: Path) -> None:
    state = tmp_path / "s"
    furnish(state)
    try:
        with staged(state) as stage:
            cluster = stage.ask("cluster_define", topology=LONE)["cluster_id"]
            stage.done("cluster_start", cluster="lone")
            stage.ask("kernel_log_events", cluster="lone")
            run = {"cluster": "lone", "node": "one"}
            stage.ask("node_exec", **run, script=f"python3 -c '{EATS}' || :", timeout_s=LONG_S)
            assert stage.hear("kernel-log.trouble", cluster)["trouble"] == "oom"
            stage.ask("node_exec", **run, script=DIES_LATER)
            [pid] = hosted.processes(state).values()
            end = os.pidfd_open(pid)
            stage.daemon.kill()
        with os.fdopen(end):
            assert select.select([end], [], [], LONG_S)[0]
        with staged(state) as stage:
            stage.hear("kernel-log.silent", cluster)
            before = [("watched", None), ("trouble", "oom")]
            after = [("trouble", "panic"), ("silent", None)]
            assert told(stage, cluster) == before + after
            # It goes on with the next boot, and with the daemon after that.
            stage.done("cluster_start", cluster="lone")
            stage.hear("kernel-log.heard", cluster)
        with staged(state) as stage:
            stage.ask("kernel_log_events", cluster="lone")
            assert told(stage, cluster) == [*before, *after, ("heard", None)]
            stage.done("cluster_destroy", cluster="lone", delete_disks=True)
            assert [what for what, _ in told(stage, cluster)].count("trouble") == 2
    finally:
        for left in hosted.processes(state).values():
            os.kill(left, signal.SIGKILL)
