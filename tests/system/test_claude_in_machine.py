"""The real Claude Code in real machines, from the task to the merge, against a scripted model.

It has no key and no network: all it asks goes through the daemon, which adds the key.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

import hosted
from claude_image import KEY, MEMORY_MIB, NAME, VCPUS
from judges.tools import CLAUDE
from machines import LONG_S
from model_api import Turn, fail, say, turn, use
from system.agents import let_in
from system.living import Stage, furnish, staged
from system.pausing import paused_at
from system.running import alias_of, ended, registered, started

if TYPE_CHECKING:
    from pathlib import Path

    import git_repos
    from claude_image import Model
    from model_api import Part

pytestmark = pytest.mark.skipif(
    not CLAUDE.exists(), reason="Claude Code is not installed: make judges"
)

FILE = "/workspace/repo/src/a.txt"
COMMIT = use("Bash", command="git commit -qam 'Count on' && git log --format=%s | head -1")
EDIT: list[Part] = [
    turn(say("I look first."), use("Read", file_path=FILE)),
    use("Edit", file_path=FILE, old_string="two", new_string="2"),
    COMMIT,
    say("Done: it is 2."),
]


@pytest.fixture
def repo(stage: Stage, tmp_path: Path) -> git_repos.Repo:
    return registered(stage, tmp_path / "sample")


def done(stage: Stage, task_id: str) -> dict[str, Any]:
    """Wait for a run of an agent, which takes long where the host has much else to do."""
    for _ in range(4):
        if stage.ask("task_wait", task_id=task_id, timeout_s=LONG_S)["finished"]:
            break
    return ended(stage, task_id)


def asked(stage: Stage, repo: git_repos.Repo, prompt: str, **more: Any) -> str:
    given = {"image": NAME, "memory_mib": MEMORY_MIB, "vcpus": VCPUS, **more}
    return started(stage, repo=alias_of(stage, repo), prompt=prompt, **given)


def test_it_edits_a_file_runs_a_command_and_commits_and_that_is_merged(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    model.scripts["Count on."] = EDIT
    began = time.monotonic()
    run = done(stage, asked(stage, repo, "Count on.", model="claude-sonnet-4-5"))
    print(f"a run of Claude Code in a machine: {time.monotonic() - began:.1f} s")
    assert run["task"]["state"] == "done", run
    result, usage = run["result"], run["usage"]
    assert (result["success"], result["summary"]) == (True, "Done: it is 2.")
    assert [each["subject"] for each in result["commits"]] == ["Count on"]
    assert [each["path"] for each in result["files_changed"]] == ["src/a.txt"]
    assert (run["merge"]["state"], run["merge"]["how"]) == ("merged", "fast_forward")
    assert (repo.path / "src/a.txt").read_text() == "one\n2\nthree\n"
    assert repo.git("status", "--porcelain") == ""
    # Four turns, and perhaps asides of its own.
    assert usage["requests"] >= 4
    assert (usage["tokens_in"], usage["tokens_out"]) >= (4000, 200)
    assert usage["cost_usd"] > 0
    # The model answers nobody who comes with another key, and the guest never had this one.
    assert {request.key for request in model.api.conversation} == {KEY}
    assert KEY not in json.dumps([request.body for request in model.api.conversation])


@pytest.mark.long
def test_when_its_turns_are_used_up_it_has_failed_and_what_it_committed_is_kept(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    model.scripts["On and on."] = [*EDIT[:3], *[use("Bash", command="true")] * 9]
    task_id = asked(stage, repo, "On and on.", max_turns=4)
    run = done(stage, task_id)
    assert run["task"]["state"] == "failed"
    assert run["result"]["error"].startswith("max-turns: ")
    assert [each["subject"] for each in run["result"]["commits"]] == ["Count on"]
    assert repo.git("log", "--format=%s", "main") == "change"
    kept = stage.ask("repo_get", repo=alias_of(stage, repo))
    assert [each["ref"] for each in kept["unmerged"]] == [f"refs/tasks/{task_id}"]


@pytest.mark.long
def test_an_api_that_fails_for_good_fails_the_task_by_its_own_code(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    model.scripts["Refused."] = [fail(401)]
    model.scripts["Too busy."] = [fail(529)]
    # It waits twice as long each time; once is enough to see that it tries again.
    once = {"CLAUDE_CODE_MAX_RETRIES": "1"}
    tasks = [asked(stage, repo, prompt, env=once) for prompt in ("Refused.", "Too busy.")]
    refused, busy = (done(stage, task_id) for task_id in tasks)
    assert refused["result"]["error"].startswith("model-auth-failed: ")
    assert busy["result"]["error"].startswith("model-overloaded: ")
    assert {run["task"]["error"]["code"] for run in (refused, busy)} == {"run-failed"}
    # What was refused is nothing to pay for.
    assert refused["usage"]["tokens_in"] == busy["usage"]["tokens_in"] == 0


@pytest.mark.long
def test_it_can_be_cancelled_in_the_middle_of_an_answer_and_what_it_committed_is_kept(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    gate = model.gate()
    model.scripts["Never end."] = [*EDIT[:3], Turn((say("Half a sentence"),), pause=gate.hold)]
    task_id = asked(stage, repo, "Never end.")
    gate.reached()
    stage.ask("task_cancel", task_id=task_id)
    stage.hear("run.over", f"{task_id}.1")
    run = stage.ask("run_get", task_id=task_id)["run"]
    assert [each["subject"] for each in run["result"]["commits"]] == ["Count on"]
    assert stage.ask("machine_list")["items"] == []
    kept = stage.ask("repo_get", repo=alias_of(stage, repo))
    assert [each["ref"] for each in kept["unmerged"]] == [f"refs/tasks/{task_id}"]


@pytest.mark.long
def test_its_answer_has_the_form_that_was_asked_for(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    model.scripts["How many lines?"] = [use("StructuredOutput", n=3), say("There it is.")]
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    run = done(stage, asked(stage, repo, "How many lines?", answer_schema=schema))
    assert run["task"]["state"] == "done", run
    assert run["result"]["answer"] == {"n": 3}


@pytest.mark.long
def test_at_its_budget_it_is_paused_and_the_same_conversation_goes_on_with_a_higher_one(
    model: Model, tmp_path: Path
) -> None:
    model.scripts["Within limits."] = EDIT
    state = tmp_path / "s"
    furnish(state)
    before = len(model.api.conversation)
    with staged(state, egress=model.settings) as stage:
        let_in(stage)
        repo = registered(stage, tmp_path / "sample")
        task_id = asked(stage, repo, "Within limits.", tokens=1000)
        paused = paused_at(stage, task_id, times=1)
        assert paused["measure"] == "tokens"
        assert paused["used"] >= paused["limit"] == 1000
        spent = int(paused["used"])
        assert stage.refusal("task_resume", task_id=task_id, tokens=spent) == "invalid-input"
        resumed = stage.ask("task_resume", task_id=task_id, tokens=spent + 1)
        assert resumed["run"]["paused"] is None
        assert resumed["run"]["budget"]["tokens"] == spent + 1
        again = paused_at(stage, task_id, times=2)
        assert again["used"] > spent
        stage.daemon.kill()
    with staged(state, egress=model.settings) as stage:
        run = stage.ask("run_get", task_id=task_id)["run"]
        assert run["paused"]["used"] == again["used"]
        [machine] = stage.ask("machine_list")["items"]
        assert machine["state"] == "paused"
        stage.ask("task_resume", task_id=task_id, tokens=1_000_000)
        run = done(stage, task_id)
    assert run["task"]["state"] == "done", run
    assert (run["task"]["attempt"], run["merge"]["state"]) == (1, "merged")
    assert (repo.path / "src/a.txt").read_text() == "one\n2\nthree\n"
    # One conversation from its first turn to its last, and no turn paid for twice but perhaps the
    # one that the daemon's end has broken off.
    asked_for = [each for each in model.api.conversation[before:] if each.status == 200]
    turns = [each.turns_taken for each in asked_for]
    assert turns == sorted(turns)
    assert set(turns) == {0, 1, 2, 3}
    assert run["usage"]["tokens_in"] >= 4000
    assert run["paused_s"] > 0
    assert hosted.left(state) == []
