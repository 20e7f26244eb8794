"""Runs from the submission to the merge: a whole daemon, real guests, a user's real repository."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

import git_repos
import hosted
from machines import LONG_S
from system.living import MEMORY_MIB, Stage, furnish, living, staged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EDIT = """\
set -eu
printf 'by the machine\\n' >made.txt
printf '%s\\n' "$MICROVM_TASK_ID" >id.txt
git add -A
git commit -q -m 'Add what was made'
echo done with it
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with living(tmp_path_factory.mktemp("runs") / "s") as stage:
        yield stage


@pytest.fixture
def repo(stage: Stage, tmp_path: Path) -> git_repos.Repo:
    """A user's repository with `main` checked out and one commit, registered as `sample`."""
    made = git_repos.Repo.make(tmp_path / "sample")
    made.commit({"README": "a sample\n", "src/a.txt": "one\ntwo\nthree\n"})
    stage.ask("repo_add", path=str(made.path))
    return made


def alias_of(stage: Stage, repo: git_repos.Repo) -> str:
    repos = stage.ask("repo_list")["items"]
    return next(each["alias"] for each in repos if each["path"] == str(repo.path))


def started(stage: Stage, **what: Any) -> str:
    return str(stage.ask("run_start", memory_mib=MEMORY_MIB, **what)["task_id"])


def ended(stage: Stage, task_id: str) -> dict[str, Any]:
    """Wait for a task, and give the run with the task in it."""
    waited = stage.ask("task_wait", task_id=task_id, timeout_s=LONG_S)
    assert waited["finished"], stage.ask("run_get", task_id=task_id)
    told = stage.ask("run_get", task_id=task_id)
    return {**told["run"], "task": told["task"]}


def output(stage: Stage, task_id: str) -> str:
    read = stage.ask("run_output", task_id=task_id)
    return "".join(piece["text"] for piece in read["pieces"])


def test_the_commits_of_a_script_are_on_the_users_branch_and_in_the_work_tree(
    stage: Stage, repo: git_repos.Repo
) -> None:
    task_id = started(stage, repo=alias_of(stage, repo), script=EDIT)
    run = ended(stage, task_id)
    assert run["task"]["state"] == "done", run
    assert run["result"]["success"]
    assert (run["merge"]["state"], run["merge"]["how"]) == ("merged", "fast_forward")
    assert [each["path"] for each in run["result"]["files_changed"]] == ["id.txt", "made.txt"]
    assert (repo.path / "made.txt").read_text() == "by the machine\n"
    assert (repo.path / "id.txt").read_text() == f"{task_id}\n"
    assert output(stage, task_id) == "done with it\n"
    assert "+by the machine" in stage.ask("run_diff", task_id=task_id)["patch"]
    assert stage.ask("machine_list")["items"] == []


def test_a_command_without_a_repo_fails_with_its_own_status_and_words(stage: Stage) -> None:
    task_id = started(stage, argv=["/bin/sh", "-c", "echo said; echo why >&2; exit 3"])
    run = ended(stage, task_id)
    assert run["task"]["state"] == "failed"
    assert run["task"]["error"]["code"] == "run-failed"
    assert (run["result"]["success"], run["result"]["exit_code"]) == (False, 3)
    assert output(stage, task_id).splitlines() == ["said", "why"]
    assert stage.ask("machine_list")["items"] == []


def until(stage: Stage, task_id: str, words: str) -> None:
    """Wait until a run's program has said something."""
    said, offset = "", 0
    while words not in said:
        read = stage.ask("run_output", task_id=task_id, offset=offset, timeout_s=LONG_S)
        assert not read["ended"], said
        said += "".join(piece["text"] for piece in read["pieces"])
        offset = read["next"]


def test_a_task_that_is_cancelled_leaves_no_machine_and_keeps_what_was_committed(
    stage: Stage, repo: git_repos.Repo
) -> None:
    before = repo.refs()
    script = f"{EDIT}\nexec sleep 600"
    task_id = started(stage, repo=alias_of(stage, repo), script=script)
    until(stage, task_id, "done with it")
    stage.ask("task_cancel", task_id=task_id)
    stage.hear("run.over", f"{task_id}.1")
    run = stage.ask("run_get", task_id=task_id)["run"]
    assert stage.ask("machine_list")["items"] == []
    assert run["tip"] is not None
    assert repo.refs() == before
    kept = stage.ask("repo_get", repo=alias_of(stage, repo))
    assert [each["ref"] for each in kept["unmerged"]] == [f"refs/tasks/{task_id}"]


def test_a_machine_that_is_killed_fails_its_task_and_says_so(stage: Stage) -> None:
    task_id = started(stage, argv=["/bin/sh", "-c", "echo up; exec sleep 600"])
    until(stage, task_id, "up")
    machine_id = stage.ask("run_get", task_id=task_id)["run"]["machine_id"]
    stage.ask("machine_kill", machine=machine_id)
    run = ended(stage, task_id)
    assert run["task"]["state"] == "failed"
    assert run["task"]["error"]["code"] == "machine-lost"
    assert stage.ask("machine_list")["items"] == []


def test_a_run_goes_on_when_the_daemon_is_killed_and_its_result_arrives_once(
    tmp_path: Path,
) -> None:
    state = tmp_path / "s"
    furnish(state)
    repo = git_repos.Repo.make(tmp_path / "sample")
    repo.commit({"README": "a sample\n"})
    script = f"echo begun\nwhile ! [ -e /tmp/go ]; do sleep 0.1; done\n{EDIT}"
    with staged(state) as stage:
        alias = stage.ask("repo_add", path=str(repo.path))["alias"]
        task_id = started(stage, repo=alias, script=script)
        until(stage, task_id, "begun")
        machine_id = stage.ask("run_get", task_id=task_id)["run"]["machine_id"]
        stage.daemon.kill()
    with staged(state) as stage:
        assert stage.ask("run_get", task_id=task_id)["run"]["machine_id"] == machine_id
        stage.said(machine_id, "touch /tmp/go")
        run = ended(stage, task_id)
        assert run["task"]["state"] == "done", run
        assert run["task"]["attempt"] == 1
        assert output(stage, task_id) == "begun\ndone with it\n"
        assert repo.git("log", "--format=%s").splitlines() == ["Add what was made", "change"]
    assert hosted.left(state) == []


def test_tasks_on_one_repo_are_all_merged_and_one_that_does_not_fit_is_kept(
    stage: Stage, repo: git_repos.Repo
) -> None:
    alias = alias_of(stage, repo)
    commit = "git add -A && git commit -q -m {0}"
    apart = [
        started(stage, repo=alias, script=f"echo {n} >{n}.txt && {commit.format(n)}")
        for n in ("one", "two")
    ]
    line = "sed -i 's/two/{0}/' src/a.txt && " + commit
    same = [started(stage, repo=alias, script=line.format(word)) for word in ("left", "right")]
    runs = [ended(stage, task_id) for task_id in [*apart, *same]]
    states = sorted(run["merge"]["state"] for run in runs)
    assert states == ["conflict", "merged", "merged", "merged"], runs
    [lost] = [run for run in runs if run["merge"]["state"] == "conflict"]
    assert [file["path"] for file in lost["merge"]["conflicts"]] == ["src/a.txt"]
    assert lost["task"]["error"]["code"] == "merge-conflict"
    assert (repo.path / "one.txt").exists()
    assert (repo.path / "two.txt").exists()
    assert repo.git("status", "--porcelain") == ""


def test_the_text_of_a_script_reaches_its_interpreter_byte_for_byte(stage: Stage) -> None:
    odd = "echo 'x' \"$(id)\" `id`\n\u00e9\U0001f600\t\\n -n \n"
    task_id = started(stage, script=odd, interpreter=["/usr/bin/sha256sum"])
    ended(stage, task_id)
    assert output(stage, task_id).split()[0] == hashlib.sha256(odd.encode()).hexdigest()


def test_what_a_program_leaves_without_a_commit_is_committed_or_kept_as_asked(
    stage: Stage, repo: git_repos.Repo
) -> None:
    alias = alias_of(stage, repo)
    edit = "echo more >>README"
    kept, committed, back = (
        started(stage, repo=alias, script=edit, rest="patch"),
        started(stage, repo=alias, script=edit, rest="commit", merge="branch"),
        started(stage, repo=alias, script=f"git checkout -q --orphan x; {edit}; git stash -q -u"),
    )
    assert ended(stage, kept)["result"]["rest"] == "patch"
    assert ended(stage, kept)["merge"]["state"] == "none"
    run = ended(stage, committed)
    assert (run["result"]["rest"], run["merge"]["into"]) == ("commit", f"tasks/{committed}")
    assert repo.git("show", f"tasks/{committed}:README") == "a sample\nmore"
    assert ended(stage, back)["merge"]["state"] == "none"
    assert repo.git("log", "--format=%s", "main") == "change"


def test_a_script_reaches_no_model_and_no_host_that_was_not_allowed(stage: Stage) -> None:
    ask = """\
import urllib.error, urllib.request
own = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for opener, url in ((own, "http://127.0.0.1:8484/v1/messages"), (None, "http://example.org/")):
    try:
        (opener.open if opener else urllib.request.urlopen)(url, b"{}")
        print("let through")
    except urllib.error.HTTPError as error:
        print(error.code)
"""
    task_id = started(stage, script=ask, interpreter=["/usr/bin/python3"])
    run = ended(stage, task_id)
    assert run["result"]["success"], run
    assert set(output(stage, task_id).split()) <= {"403", "404"}
    assert run["usage"]["requests"] == 0
