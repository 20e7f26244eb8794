"""Runs from the submission to the merge: a whole daemon, real guests, a user's real repository."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from system.living import Stage, living
from system.running import alias_of, ended, output, registered, started, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import git_repos

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
    return registered(stage, tmp_path / "sample")


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
    assert [each["name"] for each in run["artifacts"]] == ["console.log"]
    assert run["usage"]["wall_s"] > 0
    assert run["usage"]["cpu_s"] > 0
    assert run["usage"]["memory_peak_mib"] > 0
    assert repo.refs() == before
    kept = stage.ask("repo_get", repo=alias_of(stage, repo))
    assert [each["ref"] for each in kept["unmerged"]] == [f"refs/tasks/{task_id}"]


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
