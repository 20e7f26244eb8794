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


@pytest.mark.long
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
    waits = started(stage, repo=alias, script="grep theirs src/a.txt", depends_on=[first])
    until(stage, first, "held")
    ours = repo.commit({"src/a.txt": "one\nours\nthree\n"}, "Ours")
    let_go(stage, first)
    assert ended(stage, first)["merge"]["state"] == "conflict"
    assert stage.ask("task_get", task_id=waits)["state"] == "blocked"
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
    # It is done without a machine of its own, and what was given up because of it goes on.
    settled = ended(stage, first)
    assert (settled["task"]["state"], settled["task"]["attempt"]) == ("done", 2)
    assert (settled["merge"]["state"], settled["merge"]["how"]) == ("merged", "resolved")
    assert (ended(stage, waits)["task"]["state"], output(stage, waits)) == ("done", "theirs\n")
    assert settled["merge"]["resolved_by"] == second
    assert (repo.path / "src/a.txt").read_text() == "one\nours\ntheirs\nthree\n"
    for side in (ours, settled["tip"]):
        repo.git("merge-base", "--is-ancestor", side, "main")
    assert stage.ask("repo_get", repo=alias)["unmerged"] == []
    assert stage.ask("machine_list")["items"] == []


def test_commits_that_were_refused_are_merged_once_what_was_in_the_way_is_gone(
    stage: Stage, tmp_path: Path
) -> None:
    repo = registered(stage, tmp_path / "dirty", checkout="update")
    alias = alias_of(stage, repo)
    script = f"echo it said so; sed -i s/two/theirs/ src/a.txt; echo 1 >left; {COMMIT}"
    repo.write({"src/a.txt": "one\nmine, not committed\nthree\n"})
    first = started(stage, repo=alias, script=script, artifacts=["left"])
    waits = started(stage, repo=alias, script="grep theirs src/a.txt", depends_on=[first])
    refused = ended(stage, first)
    assert (refused["merge"]["state"], refused["task"]["state"]) == ("refused", "failed")
    # Still in the way: told so once more, and nothing is lost.
    assert stage.cli("run", "merge", first).returncode == 0
    again = ended(stage, first)
    assert (again["merge"]["state"], again["continues"]) == ("refused", refused["run_id"])
    assert "mine, not committed" in (repo.path / "src/a.txt").read_text()
    repo.git("checkout", "--", "src/a.txt")
    stage.ask("run_merge", task_id=first)
    merged = ended(stage, first)
    assert (merged["merge"]["state"], merged["task"]["state"]) == ("merged", "done")
    assert (merged["tip"], merged["machine_id"]) == (refused["tip"], None)
    assert (repo.path / "src/a.txt").read_text() == "one\ntheirs\nthree\n"
    assert (ended(stage, waits)["task"]["state"], output(stage, waits)) == ("done", "theirs\n")
    # What the program left is there as before, by the attempt that has none of its own.
    assert output(stage, first) == "it said so\n"
    got = stage.ask("artifact_get", task_id=first, artifact="left")
    assert got["content"] == "1\n"
    assert stage.ask("repo_get", repo=alias)["unmerged"] == []
    assert stage.refusal("run_merge", task_id=first) == "state-forbids"
