"""The profile `microvm-orchestrator-mcp` for a client that knows what its README says.

A whole daemon, the bridge as an MCP client starts it, and the real Claude Code in real machines;
the model that it asks is a list of turns, behind a real HTTP server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from anyio.from_thread import start_blocking_portal

import git_repos
from model_api import ModelApi, open_model_api, say, use
from stdio_client import StdioClient, stdio_client
from system.living import Stage, living

if TYPE_CHECKING:
    from collections.abc import Iterator

PROFILE = "microvm-orchestrator-mcp"
_PACKAGE = json.loads((Path(__file__).parents[1] / "judges/package.json").read_text())
CLAUDE = _PACKAGE["optionalDependencies"]["@anthropic-ai/claude-code-linux-x64"]
KEY = "sk-ant-api03-the-key-of-this-test-" + "0123456789" * 4
ADD, LEFT, RIGHT = "Add hello.txt and commit.", "Write left into a.txt.", "Write right into a.txt."
COMMIT = "git add -A && git commit -q -m {0}"
MODEL = {
    ADD: [
        use("Bash", command=f"echo hi >hello.txt && {COMMIT.format('hello')}"),
        say("I added hello.txt."),
    ],
    LEFT: [
        use("Bash", command=f"echo left >src/a.txt && {COMMIT.format('left')}"),
        say("It is left now."),
    ],
    RIGHT: [
        use("Bash", command=f"echo right >src/a.txt && {COMMIT.format('right')}"),
        say("It is right now."),
    ],
}


@dataclass
class Place:
    """A daemon with one repository, whose `.microvm` git is told to ignore, and a client of it."""

    stage: Stage
    repo: git_repos.Repo
    client: StdioClient

    def files(self, task_id: str) -> Path:
        return self.repo.path / ".microvm/tasks" / task_id


@pytest.fixture(scope="module")
def model() -> Iterator[ModelApi]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_model_api(MODEL, keys=[KEY])) as api,
    ):
        yield api


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: ModelApi) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("profile")
    machines = {"default_image": "claude", "default_memory_mib": 1024}
    egress = {"anthropic_url": model.url}
    with living(folder / "s", machines=machines, egress=egress) as stage:
        stage.done("image_build", name="claude", claude=CLAUDE)
        repo = git_repos.Repo.make(folder / "sample")
        repo.commit({".gitignore": "/.microvm/\n", "src/a.txt": "one\n"})
        stage.cli("repo", "add", str(repo.path))
        with stdio_client(stage.daemon.socket, PROFILE) as client:
            yield Place(stage, repo, client)


def test_what_that_programs_readme_shows_works_from_the_task_to_the_merge(place: Place) -> None:
    client, repo = place.client, place.repo
    assert json.loads(client.refusal("run_task", description=ADD))["error"] == (
        "No API key found. Set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN, or run "
        "'microvm-orchestrator setup-token'"
    )
    place.stage.ask("credential_set", name="mine", kind="anthropic-api-key", value=KEY)
    assert client.call("wait_next_event") == {"no_running_tasks": True}
    [listed] = client.call("list_repos")["repos"]
    assert (listed["alias"], listed["path"]) == ("sample", str(repo.path))

    task_id = client.call("run_task", description=ADD, slot=3)["task_id"]
    assert client.call("get_task_info", task_id=task_id)["status"] in {"pending", "running"}
    log = Path(client.call("get_task_logs", task_id=task_id)["log_path"])
    assert log == place.files(task_id) / "serial.log"
    event = client.call("wait_next_event")

    result = {
        "success": True,
        "summary": "I added hello.txt.",
        "files_changed": ["hello.txt"],
        "error": None,
    }
    merged: dict[str, object] = {
        "merged": True,
        "method": "fast-forward",
        "commits": 1,
        "conflicts": [],
    }
    seen = (event["task_id"], event["event"], event["exit_code"])
    assert seen == (task_id, "completed", 0), event
    assert event["result"] | result == event["result"]
    assert event["merge_result"] == merged
    info = client.call("get_task_info", task_id=task_id)
    assert (info["description"], info["status"], info["slot"]) == (ADD, "completed", 3)
    assert (info["repo_path"], info["exit_code"], info["error"]) == (str(repo.path), 0, None)
    assert (info["result"], info["merge_result"]) == (event["result"], event["merge_result"])
    assert (repo.path / "hello.txt").read_text() == "hi\n"
    assert repo.git("status", "--porcelain") == ""
    assert client.call("wait_next_event") == {"no_running_tasks": True}

    files = place.files(task_id)
    assert (files / "task.md").read_text() == ADD
    assert json.loads((files / "task.json").read_text())["status"] == "completed"
    assert json.loads((files / "result.json").read_text()) == event["result"]
    assert json.loads((files / "merge-result.json").read_text()) == merged
    assert "I added hello.txt." in log.read_text()
    assert {each["task_id"]: each["status"] for each in client.call("list_tasks")["tasks"]} == {
        task_id: "completed"
    }
    assert client.call("cleanup_task", task_id=task_id, delete_ref=True) == {"success": True}
    assert not files.exists()
    gone = json.loads(client.refusal("get_task_logs", task_id=task_id))
    assert gone["error"] == f"Log file not found: {log}"


@pytest.mark.long
def test_tasks_at_once_have_slots_of_their_own_and_what_conflicts_is_kept_whatever_is_cleaned_up(
    place: Place,
) -> None:
    client, repo = place.client, place.repo
    place.stage.ask("credential_set", name="mine", kind="anthropic-api-key", value=KEY)
    with stdio_client(place.stage.daemon.socket, PROFILE) as other:
        other.call("list_tasks")
        tasks = [
            client.call("run_task", description=words, repo="sample")["task_id"]
            for words in (LEFT, RIGHT)
        ]
        slots = [client.call("get_task_info", task_id=task)["slot"] for task in tasks]
        assert slots == [1, 2]
        ends = [client.call("wait_next_event") for _ in tasks]
        again = [other.call("wait_next_event") for _ in tasks]
    assert {end["task_id"] for end in ends} == set(tasks)
    assert again == ends
    assert [end["event"] for end in ends] == ["completed", "completed"], ends
    assert ends[0]["merge_result"]["merged"] is True
    lost = ends[1]["task_id"]
    ref = f"refs/tasks/{lost}"
    told = client.call("get_task_info", task_id=lost)["merge_result"]
    kept = {"merged": False, "reason": "conflicts", "conflicts": ["src/a.txt"], "task_ref": ref}
    assert told | kept == told

    refused = json.loads(client.refusal("cleanup_task", task_id=lost, delete_ref=True))["error"]
    assert refused.startswith(f"{ref} holds commits that were not merged")
    assert client.call("cleanup_task", task_id=lost) == {"success": True}
    assert not place.files(lost).exists()
    # As the README says that a conflict is resolved by hand.
    repo.git("fetch", "--quiet", told["fetch_from"], f"{ref}:{ref}")
    assert repo.git("show", f"{ref}:src/a.txt") in {"left", "right"}
    assert repo.git("show", f"{ref}:src/a.txt") != (repo.path / "src/a.txt").read_text().strip()
