"""Agents that work on a repository: the real Claude Code in real machines, and a user's own git."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import hosted
from judges.tools import CLAUDE
from machines import LONG_S
from model_api import say, turn, use
from system.agents import HOME, answer_of, let_in, said_to
from system.living import Stage, furnish, staged
from system.running import alias_of, registered

if TYPE_CHECKING:
    from pathlib import Path

    import git_repos
    from claude_image import Model
    from model_api import Part

pytestmark = pytest.mark.skipif(
    not CLAUDE.exists(), reason="Claude Code is not installed: make judges"
)

FILE = "/workspace/repo/src/a.txt"


def run(command: str) -> Part:
    return use("Bash", command=command)


def committed(name: str, text: str) -> str:
    return f"echo {text} >{name} && git add {name} && git commit -qm 'Write {name}' && sync"


@pytest.fixture
def repo(stage: Stage, tmp_path: Path) -> git_repos.Repo:
    return registered(stage, tmp_path / "sample")


def spawned(stage: Stage, repo: git_repos.Repo, name: str, **more: Any) -> dict[str, Any]:
    return stage.done("agent_spawn", name=name, repo=alias_of(stage, repo), **HOME, **more)


def known(stage: Stage, name: str) -> dict[str, Any]:
    agent: dict[str, Any] = stage.ask("agent_get", agent=name)["agent"]
    return agent


def idle_for(stage: Stage, agent: str) -> str:
    """Wait until an agent is idle for a reason, and give that."""
    asked = {"kinds": ["agent.idle"], "subjects": [agent], "timeout_s": LONG_S}
    after, reasons = None, [""]
    while not any(reasons):
        told = stage.ask("event_wait", **asked, after=after)
        assert told["events"], stage.told(agent)
        after = told["cursor"]
        reasons = [event["body"].get("reason", "") for event in told["events"]]
    return "".join(reasons)


@pytest.mark.long
def test_what_an_agent_commits_is_merged_after_each_turn_and_nothing_is_lost_when_it_ends(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    model.scripts["Say two as a figure."] = [
        use("Read", file_path=FILE),
        use("Edit", file_path=FILE, old_string="two", new_string="2"),
        run("git commit -qam 'Count on' && git branch --show-current"),
        say("It is 2."),
    ]
    model.scripts["Begin with three."] = [
        run(f"{committed('b', 'three')} && echo unfinished >c"),
        say("There is more to do."),
    ]
    agent = spawned(stage, repo, "ada")
    assert (agent["work"]["branch"], agent["work"]["base"]) == ("agents/ada", repo.oid())
    first = said_to(stage, "ada", "Say two as a figure.")
    assert (first["state"], first["answer"]) == ("answered", "It is 2."), first
    brought = first["brought"]
    assert [each["subject"] for each in brought["commits"]] == ["Count on"]
    assert [each["path"] for each in brought["files_changed"]] == ["src/a.txt"]
    assert (brought["merge"]["state"], brought["merge"]["how"]) == ("merged", "fast_forward")
    assert not brought["uncommitted"]
    assert (repo.path / "src/a.txt").read_text() == "one\n2\nthree\n"
    # The user goes on meanwhile.
    repo.commit({"README": "more\n"}, "Say more")
    second = said_to(stage, "ada", "Begin with three.")
    brought = second["brought"]
    assert [each["subject"] for each in brought["commits"]] == ["Write b"]
    assert (brought["merge"]["how"], brought["uncommitted"]) == ("rebase", True)
    assert repo.git("log", "--format=%s", "main").splitlines()[:3] == [
        "Write b",
        "Say more",
        "Count on",
    ]
    assert repo.git("status", "--porcelain") == ""
    [ended] = stage.ask("agent_end", agent="ada")["agents"]
    # What it had not committed is on its own branch, and there alone.
    assert ended["work"]["left"] == repo.oid("agents/ada")
    assert repo.git("show", "agents/ada:c") == "unfinished"
    assert repo.git("log", "--format=%s", "agents/ada").splitlines()[:3] == [
        "Left uncommitted by agent ada",
        "Write b",
        "Count on",
    ]
    assert not (repo.path / "c").exists()
    told = [kind for kind in stage.told(agent["agent_id"]) if "collected" in kind]
    assert told == ["agent.collected"] * 2
    stage.ask("agent_delete", agent=ended["agent_id"])
    assert stage.ask("repo_get", repo=alias_of(stage, repo))["unmerged"] == []
    stage.ask("repo_remove", repo=alias_of(stage, repo))


@pytest.mark.long
def test_what_does_not_fit_is_told_and_is_on_the_agents_own_branch(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    model.scripts["Say two as a figure."] = [
        run(f"sed -i s/two/2/ {FILE} && git commit -qam 'Count on'"),
        say("It is 2."),
    ]
    spawned(stage, repo, "bob")
    theirs = repo.commit({"src/a.txt": "one\nzwei\nthree\n"}, "Count in German")
    brought = said_to(stage, "bob", "Say two as a figure.")["brought"]
    assert brought["merge"]["state"] == "conflict"
    assert [each["path"] for each in brought["merge"]["conflicts"]] == ["src/a.txt"]
    assert (repo.oid("main"), repo.git("status", "--porcelain")) == (theirs, "")
    assert repo.git("log", "--format=%s", "-1", "agents/bob") == "Count on"
    # What was in the way is gone: it is merged when somebody asks.
    repo.git("revert", "--no-edit", "HEAD")
    collected = stage.done("agent_collect", agent="bob")
    assert (collected["merge"]["state"], collected["commits"]) == ("merged", [])
    assert (repo.path / "src/a.txt").read_text() == "one\n2\nthree\n"
    stage.ask("agent_end", agent="bob")


@pytest.mark.long
def test_what_waits_to_be_looked_at_is_merged_when_somebody_says_so(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    model.scripts["Write b."] = [run(committed("b", "x")), say("Written.")]
    model.scripts["Write d in the copy."] = [run(committed("d", "x")), say("Written.")]
    spawned(stage, repo, "carl", merge="review")
    brought = said_to(stage, "carl", "Write b.")["brought"]
    assert brought["merge"]["state"] == "pending"
    assert "agent_collect" in brought["merge"]["reason"]
    assert (repo.path / "b").exists() is False
    copy = stage.done("agent_branch", agent="carl", name="carl-2")
    assert copy["work"]["branch"] == "agents/carl-2"
    assert said_to(stage, "carl-2", "Write d in the copy.")["brought"]["commit_count"] == 1
    assert repo.git("log", "--format=%s", "agents/carl-2").splitlines() == [
        "Write d",
        "Write b",
        "change",
    ]
    assert repo.git("log", "--format=%s", "agents/carl").splitlines() == ["Write b", "change"]
    collected = stage.done("agent_collect", agent="carl", merge="auto")
    assert collected["merge"]["state"] == "merged"
    assert (repo.path / "b").read_text() == "x\n"
    for name in ("carl", "carl-2"):
        stage.ask("agent_end", agent=name)


@pytest.mark.long
def test_one_whose_machine_is_killed_has_its_commits_collected_when_it_runs_again(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    gate = model.gate()
    model.scripts["Write e, and think."] = [
        run(committed("e", "x")),
        replace(turn(say("Hm.")), pause=gate.hold),
    ]
    agent = spawned(stage, repo, "dan")
    message = stage.ask("agent_send", agent="dan", text="Write e, and think.", wait_s=0)
    gate.reached()
    os.kill(hosted.processes(stage.daemon.state_dir)[agent["machine_id"]], signal.SIGKILL)
    heard = answer_of(stage, message)
    assert (heard["state"], heard["brought"]["error"]["code"]) == ("failed", "machine-lost")
    gate.open()
    assert known(stage, "dan")["work"]["unsure"]
    # It is looked at before it is ended, which starts it.
    [ended] = stage.ask("agent_end", agent="dan")["agents"]
    assert (ended["work"]["outcome"]["state"], ended["work"]["unsure"]) == ("merged", False)
    assert (repo.path / "e").read_text() == "x\n"


@pytest.mark.long
def test_an_ephemeral_agent_ends_with_what_it_did_at_home_and_stays_while_that_cannot_be(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    model.scripts["Write k."] = [
        run(f"{committed('k', 'x')} && echo unfinished >l"),
        say("Written."),
    ]
    gil = spawned(stage, repo, "gil", ephemeral=True)
    assert said_to(stage, "gil", "Write k.")["brought"]["merge"]["state"] == "merged"
    stage.hear("agent.ended", gil["agent_id"])
    assert (repo.path / "k").read_text() == "x\n"
    assert repo.git("show", "agents/gil:l") == "unfinished"
    assert "it is ephemeral" in known(stage, gil["agent_id"])["reason"]
    model.scripts["Break it."] = [run("rm -rf .git && echo x >m && sync"), say("It is broken.")]
    hal = spawned(stage, repo, "hal", ephemeral=True)
    said_to(stage, "hal", "Break it.")
    assert "what agent hal did cannot be collected" in idle_for(stage, hal["agent_id"])
    assert stage.refusal("agent_end", agent="hal") == "state-forbids"
    [ended] = stage.ask("agent_end", agent="hal", collect=False)["agents"]
    assert (ended["state"], ended["reason"]) == ("ended", "")


@pytest.mark.long
def test_a_daemon_that_is_killed_before_it_has_collected_does_so_once_when_it_is_up(
    model: Model, tmp_path: Path
) -> None:
    state = tmp_path / "s"
    furnish(state)
    gate = model.gate()
    model.scripts["Write f."] = [
        run(committed("f", "x")),
        replace(turn(say("Written.")), pause=gate.hold),
    ]
    with staged(state, egress=model.settings) as stage:
        let_in(stage)
        repo = registered(stage, tmp_path / "sample")
        agent = spawned(stage, repo, "eve")
        message = stage.ask("agent_send", agent="eve", text="Write f.", wait_s=0)
        gate.reached()
        stage.daemon.kill()
    gate.open()
    with staged(state, egress=model.settings) as stage:
        heard = answer_of(stage, message)
        assert [each["subject"] for each in heard["brought"]["commits"]] == ["Write f"]
        assert heard["brought"]["merge"]["state"] == "merged"
        assert stage.told(agent["agent_id"]).count("agent.collected") == 1
        assert repo.git("log", "--format=%s", "main").splitlines() == ["Write f", "change"]
        stage.ask("agent_end", agent="eve")
        stage.clear()
    assert hosted.left(state) == []


@pytest.mark.long
def test_an_agent_does_the_tasks_of_a_graph_one_after_the_other(
    stage: Stage, repo: git_repos.Repo, model: Model
) -> None:
    def tool(name: str, **given: Any) -> Part:
        return use(f"mcp__orchestrator__{name}", **given)

    model.scripts["Do what is there."] = [
        tool("claim"),
        run(committed("g", "first")),
        tool("complete", task_id="first", result={"file": "g"}),
        tool("claim"),
        run(committed("h", "second")),
        tool("complete", task_id="second", result={"file": "h"}),
        tool("claim"),
        say("All is done."),
    ]
    tasks = [{"key": "first", "title": "Write g"}, {"key": "second", "depends_on": ["first"]}]
    stage.ask("graph_submit", tasks=tasks)
    agent = spawned(stage, repo, "fred", works=True)
    answered = said_to(stage, "fred", "Do what is there.")
    assert (answered["state"], answered["answer"]) == ("answered", "All is done."), answered
    told = [stage.ask("task_get", task_id=key) for key in ("first", "second")]
    assert [(each["state"], each["worker"]) for each in told] == [("done", "agent:fred")] * 2
    assert [each["result"] for each in told] == [{"file": "g"}, {"file": "h"}]
    assert (repo.path / "h").read_text() == "second\n"
    # One who may not is not offered them, and what it holds is for others once it has ended.
    stage.ask("task_submit", key="third")
    model.scripts["Take one more."] = [tool("claim"), say("I have it.")]
    said_to(stage, "fred", "Take one more.")
    assert stage.ask("task_get", task_id="third")["worker"] == "agent:fred"
    stage.ask("agent_end", agent="fred")
    assert stage.ask("task_get", task_id="third")["state"] == "ready"
    assert agent["works"]["scope"]["everything"]
