"""Runs that stand still at a limit, whatever their program is, and go on where they stood."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import hosted
from microvm_orchestrator import errors
from system.living import furnish, living, staged
from system.pausing import paused_at
from system.running import HOLD, alias_of, ended, let_go, machine_of, output, registered, started

if TYPE_CHECKING:
    from pathlib import Path

EDIT = "echo made >made.txt && git add -A && git commit -q -m 'Add what was made'\n"
# Longer than any test waits, so that only its limit ends it.
SPIN = "while :; do :; done\n"


def test_a_run_is_paused_when_its_time_is_up_outlives_the_daemon_and_goes_on_with_more(
    tmp_path: Path,
) -> None:
    state = tmp_path / "s"
    furnish(state)
    with staged(state, runs={"count": 1}) as stage:
        repo = registered(stage, tmp_path / "sample")
        task_id = started(stage, repo=alias_of(stage, repo), script=HOLD + EDIT, wall_s=1.0)
        paused = paused_at(stage, task_id)
        assert paused["measure"] == "wall_s"
        assert paused["used"] >= paused["limit"] == 1.0
        assert stage.ask("task_get", task_id=task_id)["state"] == "running"
        # It takes no place from others meanwhile.
        other = started(stage, argv=["/bin/true"])
        assert ended(stage, other)["task"]["state"] == "done"
        stage.daemon.kill()
    with staged(state, runs={"count": 1}) as stage:
        assert stage.ask("run_get", task_id=task_id)["run"]["paused"] == paused
        assert stage.state(machine_of(stage, task_id))[0] == "paused"
        with pytest.raises(errors.InvalidInput, match=f"{paused['used']:.10g} wall_s are used up"):
            stage.ask("task_resume", task_id=task_id, wall_s=1.0)
        with pytest.raises(errors.InvalidInput, match="wall_s are used up"):
            stage.ask("task_resume", task_id=task_id, tokens=5)
        resumed = stage.ask("task_resume", task_id=task_id, wall_s=1000.0)["run"]
        assert (resumed["paused"], resumed["budget"]["wall_s"]) == (None, 1000.0)
        assert stage.refusal("task_resume", task_id=task_id, wall_s=2000.0) == "state-forbids"
        let_go(stage, task_id)
        run = ended(stage, task_id)
        assert (run["task"]["state"], run["task"]["attempt"]) == ("done", 1)
        assert output(stage, task_id) == "held\n"
        assert run["merge"]["state"] == "merged"
        assert repo.git("log", "--format=%s").splitlines() == ["Add what was made", "change"]
        assert run["paused_s"] > 0
        assert paused["used"] <= run["usage"]["wall_s"] < 1000
        assert stage.told(f"{task_id}.1").count("run.paused") == 1
    assert hosted.left(state) == []


def test_a_paused_run_that_is_cancelled_leaves_no_machine_and_keeps_what_was_committed(
    tmp_path: Path,
) -> None:
    with living(tmp_path / "s") as stage:
        repo = registered(stage, tmp_path / "sample")
        # The boot counts as well: what its machine takes is what it takes of this host.
        task_id = started(stage, repo=alias_of(stage, repo), script=EDIT + SPIN, cpu_s=10.0)
        paused = paused_at(stage, task_id)
        assert paused["measure"] == "cpu_s"
        assert paused["used"] >= paused["limit"] == 10.0
        stage.ask("task_cancel", task_id=task_id)
        stage.hear("run.over", f"{task_id}.1")
        run = stage.ask("run_get", task_id=task_id)["run"]
        assert run["paused"] is None
        assert [each["subject"] for each in run["result"]["commits"]] == ["Add what was made"]
        assert stage.ask("machine_list")["items"] == []
        kept = stage.ask("repo_get", repo=alias_of(stage, repo))
        assert [each["ref"] for each in kept["unmerged"]] == [f"refs/tasks/{task_id}"]
        assert stage.refusal("task_resume", task_id=task_id, cpu_s=99.0) == "state-forbids"
