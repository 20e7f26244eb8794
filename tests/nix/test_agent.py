"""The agent that guests of the NixOS tests have in place of Claude Code, told a task by its driver.

What it is told and tells there is what the real one is told and tells; here it runs on this host.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread

import git_repos
from microvm_orchestrator.agents.drivers.base import AgentTask, Endpoint, KeyKind, ToolUsed
from microvm_orchestrator.agents.drivers.claude import ClaudeDriver
from model_api import open_model_api, say, use
from nix.evaluation import ROOT

AGENT = ROOT / "tests/nixos/parts/agent.py"
KEY = "sk-ant-placeholder"
PATIENCE_S = 60


async def test_it_is_to_its_driver_and_to_the_model_what_claude_code_is(tmp_path: Path) -> None:
    repo = git_repos.Repo.make(tmp_path / "repo")
    repo.commit({"README": "a sample\n"})
    made = str(repo.path / "made")
    script = [
        use("Write", file_path=made, content="by nobody\n"),
        use("Edit", file_path=made, old_string="nobody", new_string="the model"),
        use("Bash", command="git add made && git commit -qm Made && git log --format=%s -1"),
        say("Done."),
    ]
    task, driver = AgentTask(prompt="Make it."), ClaudeDriver()
    with anyio.fail_after(PATIENCE_S):
        async with open_model_api(script, keys=[KEY]) as api:
            endpoint = Endpoint(api.url, KEY, KeyKind.API_KEY)
            given = driver.prepare(task, endpoint, str(tmp_path), str(repo.path))

            def run() -> subprocess.CompletedProcess[bytes]:
                return subprocess.run(
                    [sys.executable, "-I", str(AGENT), *given.argv[1:]],
                    cwd=repo.path,
                    env={**git_repos.ENV, **given.env},
                    input=given.stdin,
                    capture_output=True,
                    check=False,
                    timeout=PATIENCE_S,
                )

            ran = await anyio.to_thread.run_sync(run)
    reader = driver.reader(task)
    events = list(reader.feed(ran.stdout))
    ended = reader.finish(ran.returncode, None, ran.stderr)
    assert (ended.success, ended.summary, ended.turns) == (True, "Done.", 4), ran.stderr
    used = [event.name for event in events if isinstance(event, ToolUsed)]
    assert used == ["Write", "Edit", "Bash"]
    assert repo.git("show", "main:made") == "by the model"
    assert [request.turns_taken for request in api.conversation] == [0, 1, 2, 3]
    assert "Made" in str(api.conversation[-1].body)
