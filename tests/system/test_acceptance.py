"""What systems like this one promised or got wrong, each case by its number in a list of them.

A whole daemon, real guests and a user's real repository. All but the eighth case share a daemon
whose machines stand ready. Cases 11 to 21, of clusters, are in `test_cluster_cases.py`; 22 to
26, of jobs that are delegated, in `test_delegation.py`.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import git_repos
import hosted
from machines import LONG_S
from microvm_orchestrator.cli.client import Client
from system.living import MEMORY_MIB, Stage, furnish, living, staged
from system.running import (
    HOLD,
    alias_of,
    ended,
    let_go,
    machine_of,
    output,
    registered,
    started,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLOTS = 6
COMMIT = "git add -A && git commit -q -m '{0}'\n"
# What a hook can be called that git runs beside a commit, a merge, a switch or a move of a ref.
HOOKS = (
    *("applypatch-msg", "commit-msg", "fsmonitor-watchman", "post-applypatch", "post-checkout"),
    *("post-commit", "post-index-change", "post-merge", "post-rewrite", "post-update"),
    *("pre-applypatch", "pre-auto-gc", "pre-commit", "pre-merge-commit", "pre-push", "pre-rebase"),
    *("pre-receive", "prepare-commit-msg", "proc-receive", "push-to-checkout"),
    *("reference-transaction", "update"),
)
# Takes the place of git in a guest, and does something else than to write a bundle.
FORGE = """\
mkdir -p /usr/local/bin
cat >/usr/local/bin/git <<'END'
#!/bin/sh
case " $* " in
*" bundle create "*) for word; do case $word in *.bundle) out=$word ;; esac; done; {0} ;;
*) exec /usr/bin/git "$@" ;;
esac
END
chmod 755 /usr/local/bin/git
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    machines = {"count": SLOTS, "default_memory_mib": MEMORY_MIB, "warm": {"embedded": 2}}
    runs = {"count": SLOTS}
    with living(tmp_path_factory.mktemp("cases") / "s", machines=machines, runs=runs) as stage:
        yield stage


@pytest.fixture
def repo(stage: Stage, tmp_path: Path) -> git_repos.Repo:
    return registered(stage, tmp_path / "sample")


def commit(path: str, text: str) -> str:
    """Write a script that commits one line in one file."""
    return f"mkdir -p \"$(dirname {path})\" && echo '{text}' >{path} && {COMMIT.format(text)}"


def slots(stage: Stage) -> list[str]:
    return [slot["machine_id"] for slot in stage.ask("slot_list")["items"]]


def test_case_01_two_tasks_on_two_repos_run_at_once_each_in_a_slot_and_repo_of_its_own(
    stage: Stage, tmp_path: Path
) -> None:
    repos = [registered(stage, tmp_path / name) for name in ("left", "right")]
    for repo in repos:
        repo.commit({"name": f"{repo.path.name}\n"}, "name")
    script = f"{HOLD}cp name seen\n{COMMIT.format('see')}"
    tasks = [started(stage, repo=alias_of(stage, repo), script=script) for repo in repos]
    for task in tasks:
        until(stage, task, "held")
    machines = [machine_of(stage, task) for task in tasks]
    assert len(set(machines)) == 2
    assert sorted(slots(stage)) == sorted(machines)
    for task, repo in zip(tasks, repos, strict=True):
        let_go(stage, task)
        run = ended(stage, task)
        assert (run["task"]["state"], run["merge"]["state"]) == ("done", "merged"), run
        assert (repo.path / "seen").read_text() == f"{repo.path.name}\n"
        assert repo.git("log", "--format=%s").splitlines() == ["see", "name", "change"]
    assert slots(stage) == []


def test_case_02_six_tasks_on_one_repo_that_finish_together_are_all_merged(
    stage: Stage, repo: git_repos.Repo
) -> None:
    alias, numbers = alias_of(stage, repo), range(1, 7)
    tasks = [
        started(stage, repo=alias, script=HOLD + commit(f"part/{number}", f"part {number}"))
        for number in numbers
    ]
    for task in tasks:
        until(stage, task, "held")
    with ThreadPoolExecutor(len(tasks)) as threads:
        for gone in [threads.submit(let_go, stage, task) for task in tasks]:
            gone.result()
    for task in tasks:
        run = ended(stage, task)
        assert (run["task"]["state"], run["merge"]["state"]) == ("done", "merged"), run
    texts = [(repo.path / f"part/{number}").read_text() for number in numbers]
    assert texts == [f"part {number}\n" for number in numbers]
    subjects = repo.git("log", "--format=%s").splitlines()
    assert sorted(subjects) == ["change", *(f"part {number}" for number in numbers)]
    assert repo.git("status", "--porcelain") == ""


def test_case_03_the_second_change_of_a_line_is_a_conflict_that_names_the_file_and_keeps_a_ref(
    stage: Stage, repo: git_repos.Repo
) -> None:
    alias = alias_of(stage, repo)
    change = HOLD + "sed -i 's/two/{0}/' src/a.txt && " + COMMIT
    first, second = (started(stage, repo=alias, script=change.format(w)) for w in ("ja", "nein"))
    for task in (first, second):
        until(stage, task, "held")
    let_go(stage, first)
    assert ended(stage, first)["merge"]["state"] == "merged"
    let_go(stage, second)
    run = ended(stage, second)
    assert (run["task"]["state"], run["task"]["error"]["code"]) == ("failed", "merge-conflict")
    assert run["merge"]["state"] == "conflict"
    [clash] = run["merge"]["conflicts"]
    assert clash["path"] == "src/a.txt"
    [hunk] = clash["hunks"]
    assert ("ja" in hunk, "nein" in hunk) == (True, True)
    ref = f"refs/tasks/{second}"
    assert run["merge"]["ref"] == ref
    assert [each["ref"] for each in stage.ask("repo_get", repo=alias)["unmerged"]] == [ref]
    assert "+nein" in stage.ask("run_diff", task_id=second)["patch"]
    assert repo.git("show", "main:src/a.txt") == "one\nja\nthree"
    assert repo.git("status", "--porcelain") == ""


def test_case_04_where_head_has_moved_and_an_untracked_file_is_in_the_way_nothing_is_touched(
    stage: Stage, repo: git_repos.Repo
) -> None:
    task = started(stage, repo=alias_of(stage, repo), script=HOLD + commit("new", "by the task"))
    until(stage, task, "held")
    repo.commit({"README": "moved on\n"}, "move on")
    repo.write({"new": "by the user\n"})
    before = git_repos.look_of(repo.path)
    let_go(stage, task)
    run = ended(stage, task)
    assert (run["task"]["state"], run["task"]["error"]["code"]) == ("failed", "merge-refused")
    assert run["merge"]["state"] == "refused"
    assert "untracked" in run["merge"]["reason"]
    assert stage.hear("task.failed", task)["error"]["code"] == "merge-refused"
    assert slots(stage) == []
    # New objects may lie there by now; whatever the user sees is as it was.
    assert _of_user(git_repos.look_of(repo.path)) == _of_user(before)
    kept = stage.ask("repo_get", repo=alias_of(stage, repo))["unmerged"]
    assert [each["ref"] for each in kept] == [f"refs/tasks/{task}"]


def _of_user(look: dict[str, tuple[object, ...]]) -> dict[str, object]:
    """Leave out of a description where git keeps objects, and when folders were written in."""
    kept = {path: about for path, about in look.items() if "/.git/objects" not in path}
    return {path: (about[0], about[3]) for path, about in kept.items()}


def test_case_05_a_task_whose_machine_is_killed_by_a_signal_has_failed(stage: Stage) -> None:
    task = started(stage, argv=["/bin/sh", "-c", "echo up; exec sleep 600"])
    until(stage, task, "up")
    machine = stage.ask("machine_get", machine=machine_of(stage, task))
    on_host = machine["runtime_id"] or machine["machine_id"]
    os.kill(hosted.processes(stage.daemon.state_dir)[on_host], signal.SIGKILL)
    run = ended(stage, task)
    assert (run["task"]["state"], run["task"]["error"]["code"]) == ("failed", "machine-lost")
    assert (run["result"]["success"], run["result"]["exit_code"]) == (False, None)
    assert stage.hear("task.failed", task)["error"]["code"] == "machine-lost"
    assert stage.ask("machine_list")["items"] == []
    assert slots(stage) == []


@pytest.mark.parametrize(
    ("forged", "code"),
    [
        ('head -c 100000 /dev/urandom >"$out"', "bundle-refused"),
        ('ln -sf /etc/passwd "$out"', "bundle-refused"),
        ('truncate -s 2049M "$out"', "too-large"),
    ],
    ids=["garbage", "a-symlink", "2-GB"],
)
def test_case_06_a_result_that_is_none_fails_its_task_and_leaves_the_host_as_it_was(
    stage: Stage, repo: git_repos.Repo, forged: str, code: str
) -> None:
    before = git_repos.look_of(repo.path)
    script = commit("made", "made") + FORGE.format(forged)
    run = ended(stage, task := started(stage, repo=alias_of(stage, repo), script=script))
    assert (run["task"]["state"], run["task"]["error"]["code"]) == ("failed", code), run
    assert git_repos.look_of(repo.path) == before
    kept = [path.name for path in (stage.daemon.state_dir / "runs" / f"{task}.1").iterdir()]
    assert sorted(set(kept) - {"reached.jsonl"}) == ["output"]
    assert stage.ask("repo_get", repo=alias_of(stage, repo))["unmerged"] == []
    assert slots(stage) == []


def test_case_07_no_hook_runs_where_core_hookspath_names_a_folder_of_the_repository(
    stage: Stage, repo: git_repos.Repo, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    hook = f"#!/bin/sh\necho \"$0\" >>'{ran}'\n"
    repo.write({f".husky/{name}": hook for name in HOOKS})
    for name in HOOKS:
        (repo.path / ".husky" / name).chmod(0o755)
    repo.commit({}, "hooks")
    repo.git("config", "core.hooksPath", ".husky")
    # The task brings one that is worse, and commits with it.
    script = "printf '#!/bin/sh\\ntouch /tmp/ran\\n' >.husky/post-merge\n" + COMMIT.format("worse")
    run = ended(stage, started(stage, repo=alias_of(stage, repo), script=script))
    assert run["merge"]["state"] == "merged", run
    assert repo.git("rev-parse", "HEAD") == run["merge"]["commit"]
    assert "touch" in (repo.path / ".husky/post-merge").read_text()
    assert not ran.exists()
    # They are live: the user's own git runs them.
    repo.git("commit", "--quiet", "--allow-empty", "--message", "mine")
    assert ".husky/post-commit" in ran.read_text()


def test_case_08_a_task_goes_on_when_the_daemon_is_killed_and_its_result_arrives_once(
    tmp_path: Path,
) -> None:
    state = tmp_path / "s"
    furnish(state)
    script = f"{HOLD}{commit('made', 'made')}echo done with it\n"
    with staged(state) as stage:
        repo = registered(stage, tmp_path / "sample")
        alias = alias_of(stage, repo)
        task = started(stage, repo=alias, script=script)
        until(stage, task, "held")
        machine = machine_of(stage, task)
        stage.daemon.kill()
    with staged(state) as stage:
        told = stage.ask("run_get", task_id=task)
        assert (told["task"]["state"], told["run"]["machine_id"]) == ("running", machine)
        let_go(stage, task)
        run = ended(stage, task)
        assert (run["task"]["state"], run["task"]["attempt"]) == ("done", 1), run
        assert output(stage, task) == "held\ndone with it\n"
        assert repo.git("log", "--format=%s").splitlines() == ["made", "change"]
    assert hosted.left(state) == []


def test_case_09_two_clients_see_the_same_event_and_one_that_breaks_off_misses_nothing(
    stage: Stage,
) -> None:
    cursor = stage.ask("event_wait", after="now")["cursor"]
    asked = {"after": cursor, "kinds": ["run.over"]}

    def wait(seconds: float, **more: Any) -> dict[str, Any]:
        told = {**asked, **more, "timeout_s": seconds}
        return Client(stage.daemon.socket).call("event_wait", told).value

    with socket.socket(socket.AF_UNIX) as third, ThreadPoolExecutor(2) as threads:
        third.connect(str(stage.daemon.socket))
        target = f"/v1/events?after={cursor}&kinds=run.over&timeout_s={LONG_S}"
        third.sendall(f"GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        waiting = [threads.submit(wait, LONG_S) for _ in range(2)]
        third.shutdown(socket.SHUT_RDWR)
        third.close()
        task = started(stage, argv=["/bin/true"])
        one, two = (future.result() for future in waiting)
    again = wait(0)
    assert [event["subject"] for event in one["events"]] == [f"{task}.1"]
    assert one["events"] == two["events"] == again["events"]
    assert wait(0, after=one["cursor"])["events"] == []
    ended(stage, task)


def test_case_10_where_all_slots_are_busy_one_waits_or_is_refused_with_who_is_in_them(
    stage: Stage,
) -> None:
    busy = [stage.boot(f"busy-{number}")["machine_id"] for number in range(SLOTS)]
    stage.ask("machine_define", name="one-more", memory_mib=MEMORY_MIB)
    refused = stage.ask("machine_start", machine="one-more", queue=False, wait_s=LONG_S)
    assert (refused["state"], refused["error"]["code"]) == ("failed", "no-room")
    words = f"All {SLOTS} slots are busy. Active machines: {', '.join(busy)}"
    assert refused["error"]["message"] == words
    task = started(stage, argv=["/bin/echo", "in the end"])
    stage.hear("run.starting", f"{task}.1")
    in_line = machine_of(stage, task)
    # It stands there a moment after it says that it will, which nobody tells of.
    deadline = time.monotonic() + LONG_S
    while (told := stage.ask("slot_list"))["waiting"] == 0:
        assert time.monotonic() < deadline
    assert [slot["machine_id"] for slot in told["items"] if slot["waiting"]] == [in_line]
    assert stage.ask("run_get", task_id=task)["run"]["step"] == "starting"
    for machine in busy:
        stage.drop(machine)
    assert ended(stage, task)["task"]["state"] == "done"
    assert output(stage, task) == "in the end\n"
    stage.drop("one-more")
