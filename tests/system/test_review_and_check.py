"""Commits that wait for a look, a check or a resolution, with real machines and a real daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import hosted
from system.living import MEMORY_MIB, Stage, furnish, living, staged
from system.running import HOLD, alias_of, ended, let_go, output, registered, started, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "git add -A && git commit -q -m 'Did it'\n"
# A check that goes on when somebody in its machine says so.
GATE = "mkfifo /tmp/gate && read -r word </tmp/gate && echo heard $word && test $word = yes"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with living(tmp_path_factory.mktemp("review") / "s") as stage:
        yield stage


def open_gate(stage: Stage, machine_id: str, word: str) -> None:
    """Let a check go on, once it waits."""
    stage.said(machine_id, f"until [ -p /tmp/gate ]; do sleep 0.05; done; echo {word} >/tmp/gate")


def checking(stage: Stage, task_id: str, not_in: str | None = None) -> str:
    """Wait until the check of a run has a machine that runs; its id."""
    stage.hear("run.checking", f"{task_id}.1")
    while True:
        found = str(stage.ask("run_get", task_id=task_id)["run"]["check_machine_id"])
        if found != not_in:
            stage.hear("machine.running", found)
            return found


def test_a_run_that_waits_for_a_look_has_no_machine_takes_no_place_and_outlives_the_daemon(
    tmp_path: Path,
) -> None:
    state = tmp_path / "s"
    furnish(state)
    one = {"runs": {"count": 1}}
    with staged(state, **one) as stage:
        repo = registered(stage, tmp_path / "site", merge="review")
        refs = repo.refs()
        make = f"echo made >made.txt; {COMMIT}"
        task_id = started(stage, repo="site", script=make)
        stage.hear("run.reviewing", f"{task_id}.1")
        rejected = started(stage, repo="site", script=f"echo bad >bad.txt; {COMMIT}")
        stage.hear("run.reviewing", f"{rejected}.1")
        other = started(stage, argv=["true"])
        assert ended(stage, other)["task"]["state"] == "done"
        assert stage.ask("machine_list")["items"] == []
        assert repo.refs() == refs
        assert "+made" in stage.ask("run_diff", task_id=task_id)["patch"]
        assert stage.ask("run_output", task_id=task_id)["ended"]
        no = stage.cli("run", "reject", rejected, "-m", "not like this")
        assert no.returncode == 0, no.stderr
        failed = ended(stage, rejected)
        assert failed["task"]["error"]["code"] == "merge-rejected"
        assert "not like this" in failed["task"]["error"]["message"]
        assert failed["merge"]["state"] == "rejected"
        assert stage.refusal("run_approve", task_id=rejected) == "state-forbids"
        stage.daemon.kill()
    with staged(state, **one) as stage:
        told = stage.ask("run_get", task_id=task_id)
        assert (told["run"]["step"], told["task"]["state"]) == ("reviewing", "running")
        yes = stage.cli("run", "approve", task_id, "--message", "as it should be")
        assert yes.returncode == 0, yes.stderr
        run = ended(stage, task_id)
        assert run["task"]["state"] == "done", run
        assert (run["task"]["attempt"], run["merge"]["how"]) == (1, "fast_forward")
        assert run["decision"]["message"] == "as it should be"
        assert (repo.path / "made.txt").read_text() == "made\n"
        assert stage.ask("run_approve", task_id=task_id)["run"]["step"] == "over"
        kept = stage.ask("repo_get", repo="site")["unmerged"]
        assert [each["ref"] for each in kept] == [f"refs/tasks/{rejected}"]
    assert hosted.left(state) == []


def test_what_was_merged_is_checked_in_a_machine_of_its_own_before_the_branch_moves(
    stage: Stage, tmp_path: Path
) -> None:
    check = 'test "$WORD" = x || exit 4; cat made.txt; test ! -e /tmp/mark; grep -q good made.txt'
    repo = registered(stage, tmp_path / "checked", check=check)
    make = f"touch /tmp/mark; echo $WORD made >made.txt; {COMMIT}"
    task_id = started(stage, repo="checked", script=make, env={"WORD": "x"})
    run = ended(stage, task_id)
    assert run["task"]["error"]["code"] == "check-failed", run
    assert (run["merge"]["state"], run["merge"]["check"]["exit_code"]) == ("check_failed", 1)
    assert run["merge"]["check"]["output"] == "x made\n"
    assert repo.git("log", "--format=%s", "main") == "change"
    kept = stage.ask("repo_get", repo="checked")["unmerged"]
    assert [each["ref"] for each in kept] == [f"refs/tasks/{task_id}"]
    good = started(
        stage, repo="checked", script=make.replace("made >", "good >"), env={"WORD": "x"}
    )
    run = ended(stage, good)
    assert run["task"]["state"] == "done", run
    assert run["merge"]["check"]["success"]
    assert run["merge"]["check"]["commit"] == run["merge"]["commit"] == repo.oid("main")
    assert stage.ask("machine_list")["items"] == []


def test_a_task_that_is_cancelled_during_its_check_leaves_no_machine_and_moves_nothing(
    stage: Stage, tmp_path: Path
) -> None:
    repo = registered(stage, tmp_path / "cancelled")
    refs = repo.refs()
    task_id = started(stage, repo="cancelled", script=f"echo 1 >new; {COMMIT}", check=GATE)
    checking(stage, task_id)
    stage.ask("task_cancel", task_id=task_id)
    stage.hear("run.over", f"{task_id}.1")
    assert stage.ask("machine_list")["items"] == []
    run = stage.ask("run_get", task_id=task_id)["run"]
    assert (run["merge"]["state"], run["merge"]["ref"]) == ("none", f"refs/tasks/{task_id}")
    assert repo.refs() == refs


def test_a_check_whose_daemon_is_killed_is_begun_again_and_leaves_no_machine(
    tmp_path: Path,
) -> None:
    state = tmp_path / "s"
    furnish(state)
    with staged(state) as stage:
        repo = registered(stage, tmp_path / "site", check=GATE)
        task_id = started(stage, repo="site", script=f"echo 1 >new; {COMMIT}")
        first = checking(stage, task_id)
        stage.daemon.kill()
    assert list(hosted.processes(state)) != []
    with staged(state) as stage:
        second = checking(stage, task_id, not_in=first)
        open_gate(stage, second, "yes")
        run = ended(stage, task_id)
        assert run["task"]["state"] == "done", run
        assert run["merge"]["check"]["output"] == "heard yes\n"
        assert repo.oid("main") == run["tip"]
        assert stage.ask("machine_list")["items"] == []
    assert hosted.left(state) == []


def test_two_sides_that_do_not_fit_are_brought_together_in_a_machine_checked_and_merged(
    stage: Stage, tmp_path: Path
) -> None:
    repo = registered(stage, tmp_path / "clash", check="grep -q theirs src/a.txt")
    alias = alias_of(stage, repo)
    first = started(stage, repo=alias, script=f"{HOLD}sed -i s/two/theirs/ src/a.txt; {COMMIT}")
    until(stage, first, "held")
    ours = repo.commit({"src/a.txt": "one\nours\nthree\n"}, "Ours")
    let_go(stage, first)
    assert ended(stage, first)["merge"]["state"] == "conflict"
    assert stage.refusal("merge_resolve", task_id=first, script="a", argv=["b"]) == "invalid-input"
    # What an agent would do, but for the commit: a merge that is done is taken as it lies there.
    words = (
        "git status --porcelain | grep -q '^UU src/a.txt$'\n"
        "grep -q '^>>>>>>> task/' src/a.txt\n"
        "printf 'one\\nours\\ntheirs\\nthree\\n' >src/a.txt\n"
    )
    memory = ("--memory-mib", str(MEMORY_MIB))
    done = stage.cli("run", "resolve", first, "--script", f"set -e\n{words}", *memory)
    assert done.returncode == 0, done.stderr
    [second] = [
        run["task_id"]
        for run in stage.ask("task_list", limit=200)["items"]
        if run["title"] == f"Resolve {first}"
    ]
    run = ended(stage, second)
    assert run["task"]["state"] == "done", (run["task"]["error"], output(stage, second))
    assert run["merge"]["check"]["success"]
    settled = stage.ask("run_get", task_id=first)["run"]
    assert (settled["merge"]["state"], settled["merge"]["how"]) == ("merged", "resolved")
    assert settled["merge"]["resolved_by"] == second
    assert (repo.path / "src/a.txt").read_text() == "one\nours\ntheirs\nthree\n"
    for side in (ours, settled["tip"]):
        repo.git("merge-base", "--is-ancestor", side, "main")
    assert stage.ask("repo_get", repo=alias)["unmerged"] == []
    assert stage.ask("machine_list")["items"] == []
