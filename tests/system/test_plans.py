"""A task file planned and submitted over every door, and worked off in the order of the plan."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import git_repos
from daemon import COMMAND, running_daemon
from machines import LONG_S
from system import doors
from system.living import living

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TODO = """\
# Release

## Backend

1. [x] Choose a database
2. [ ] Add the users table
   - files: db/schema.sql
3. [ ] Add the login page
   - after: #2
   - files: src/login.py, src/router.py
4. [ ] Add the about page
   - files: src/router.py

## Everything

- [ ] Write the release notes
  - after: Add the login page, "add-the-about-page"
"""
KEYS = ["add-the-users-table", "add-the-login-page", "add-the-about-page"]
LAST = "write-the-release-notes"
WAVES = [KEYS[:1], [KEYS[1]], [KEYS[2]], [LAST]]
PATIENCE_S = 30.0

Json = dict[str, Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[doors.Place]:
    with running_daemon(tmp_path_factory.mktemp("state"), tcp={"listen": "127.0.0.1:0"}) as daemon:
        assert daemon.tcp is not None
        yield doors.Place(daemon.socket, daemon.tcp)


@pytest.fixture
def todo(tmp_path: Path) -> Path:
    file = tmp_path / "TODO.md"
    file.write_text(TODO)
    return file


def by_command(place: doors.Place, call: str, file: Path, **more: str) -> Json:
    words = [word for name, value in more.items() for word in (f"--{name}", value)]
    verb = {"plan_tasks": "show", "plan_submit": "submit"}[call]
    reply = doors.command(place, None, ["plan", verb, str(file), *words])
    assert reply.code == "ok", reply
    return reply.value


def through(
    door: Callable[[doors.Place, str | None, str, bytes], doors.Reply],
) -> Callable[..., Json]:
    def ask(place: doors.Place, call: str, file: Path, **more: str) -> Json:
        documents = [{"name": file.name, "text": file.read_text()}]
        given = json.dumps({"documents": documents, **more}).encode()
        reply = door(place, None, call, given)
        assert reply.code == "ok", reply
        return reply.value

    return ask


DOORS: dict[str, Callable[..., Json]] = {
    "cli": by_command,
    "rest": through(doors.rest),
    "mcp": through(doors.stream),
    "mcp-http": through(doors.streamable),
}


def ask(place: doors.Place, call: str, **arguments: Any) -> Json:
    reply = doors.rest(place, None, call, json.dumps(arguments).encode())
    assert reply.code == "ok", reply
    return reply.value


def work_off(place: doors.Place, group: str) -> list[str]:
    """Claim and complete one task after the other; the keys in the order of the claims."""
    done: list[str] = []
    while True:
        answer = ask(place, "task_claim", worker="w", groups=[group])
        if answer["verdict"] == "all_done":
            return done
        [claimed] = answer["tasks"]
        task = claimed["task"]
        done.append(task["key"])
        held = {"task_id": task["task_id"], "token": claimed["lease"]["token"], "worker": "w"}
        ask(place, "task_complete", **held)


def test_every_door_gives_the_same_plan(place: doors.Place, todo: Path) -> None:
    plans = {name: door(place, "plan_tasks", todo) for name, door in DOORS.items()}
    assert all(plan == plans["rest"] for plan in plans.values())
    plan = plans["rest"]
    assert [task["key"] for task in plan["tasks"]] == [*KEYS, LAST]
    assert plan["waves"] == WAVES
    assert [done["title"] for done in plan["skipped"]] == ["Choose a database"]
    about = plan["tasks"][2]
    assert about["depends_on"] == [
        {"task": KEYS[1], "why": "overlap", "because": "overlap on src/router.py"}
    ]


@pytest.mark.parametrize("door", DOORS)
def test_a_worker_claims_in_the_order_of_the_plan(
    place: doors.Place, todo: Path, door: str
) -> None:
    answer = DOORS[door](place, "plan_submit", todo, group=f"by-{door}")
    assert [task["key"] for task in answer["tasks"]] == [*KEYS, LAST]
    assert answer["waves"] == WAVES
    for task in answer["tasks"]:
        assert ask(place, "task_get", task_id=task["task_id"])["key"] == task["key"]
    assert work_off(place, f"by-{door}") == [*KEYS, LAST]


def test_a_plan_that_was_shown_is_submitted_as_it_was_changed(
    place: doors.Place, todo: Path, tmp_path: Path
) -> None:
    plan = by_command(place, "plan_tasks", todo)
    # Somebody knows better: the about page needs no route.
    plan["tasks"][2]["files"] = ["src/about.py"]
    changed = tmp_path / "plan.json"
    changed.write_text(json.dumps(plan))
    answer = by_command(place, "plan_submit", changed, group="changed")
    assert answer["waves"] == [[KEYS[0], KEYS[2]], [KEYS[1]], [LAST]]
    assert work_off(place, "changed") == [*KEYS, LAST]


def test_a_plan_is_read_from_standard_input(place: doors.Place) -> None:
    shown = doors.command(place, None, ["plan", "show", "-"], TODO.encode())
    assert {task["document"] for task in shown.value["tasks"]} == {"stdin"}
    plan = json.dumps(shown.value).encode()
    again = doors.command(place, None, ["plan", "show", "-"], plan)
    assert again.value["waves"] == shown.value["waves"] == WAVES


def test_what_cannot_be_read_is_refused_with_its_line_and_nothing_is_submitted(
    place: doors.Place, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.md"
    wrong.write_text("- A\n- B\n  after: nobody\n")
    reply = doors.command(place, None, ["plan", "submit", str(wrong), "--group", "wrong"])
    assert reply.code == "invalid-input"
    assert "wrong.md line 3: no task is called 'nobody'" in reply.value["stderr"]
    assert ask(place, "task_list", group="wrong")["items"] == []
    wrong.write_text("- A\n  after: B\n- B\n  after: A\n")
    assert doors.command(place, None, ["plan", "show", str(wrong)]).code == "cycle-found"
    for words in (["plan.json", str(wrong)], [str(tmp_path / "missing.md")]):
        assert doors.command(place, None, ["plan", "show", *words]).code == "invalid-input"


def test_people_read_a_table_of_waves(place: doors.Place, todo: Path) -> None:
    ran = subprocess.run(
        [COMMAND, "plan", "show", todo, "--socket", place.socket],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    head, *rows = ran.stdout.splitlines()
    assert head.split() == ["WAVE", "KEY", "TITLE", "AFTER", "FILES"]
    assert [row.split()[:2] for row in rows] == [
        [str(number), key] for number, wave in enumerate(WAVES, 1) for key in wave
    ]
    assert "add-the-login-page (overlap on src/router.py)" in rows[2]
    assert ran.stderr == "done already: Choose a database (TODO.md line 5)\n"


def test_an_agent_gets_the_file_and_what_it_is_to_make_of_it(place: doors.Place) -> None:
    with doors.mcp_stream(place, None) as stream:
        asked = {"name": "task-analyzer", "arguments": {"text": TODO, "repo": "site"}}
        prompt = stream("prompts/get", asked)["result"]
    text = prompt["messages"][0]["content"]["text"]
    assert TODO.strip() in text
    example = json.loads(text.partition("```json\n")[2].partition("```")[0])
    checked = {name: example[name] for name in example if name == "tasks"}
    reply = doors.stream(place, None, "plan_tasks", json.dumps(checked).encode())
    assert reply.code == "ok", reply
    answer = ask(place, "plan_submit", **example)
    assert answer["waves"] == [["schema"], ["login"], ["lint"]]


SCRIPTS = """\
- Say one
  files: said.txt
  run:
  ```sh
  set -eu
  echo one >>said.txt
  git commit -q -am 'Say one'
  ```
- Say two
  files: said.txt
  run:
  ```sh
  set -eu
  echo two >>said.txt
  git commit -q -am 'Say two'
  ```
- Make another file
  files: other.txt
  run: echo other >other.txt; git add -A; git commit -q -m 'Make another file'
"""


def test_tasks_that_share_a_file_are_run_and_merged_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    file = tmp_path / "TODO.md"
    file.write_text(SCRIPTS)
    repo = git_repos.Repo.make(tmp_path / "sample")
    repo.commit({"said.txt": "zero\n"})
    with living(tmp_path_factory.mktemp("plans") / "s") as stage:
        stage.ask("repo_add", path=str(repo.path), alias="sample")
        ran = stage.cli("plan", "submit", str(file), "--repo", "sample", "--json")
        answer = json.loads(ran.stdout)
        assert answer["waves"] == [["say-one", "make-another-file"], ["say-two"]]
        for task in answer["tasks"]:
            waited = stage.ask("task_wait", task_id=task["task_id"], timeout_s=LONG_S)
            run = stage.ask("run_get", task_id=task["task_id"])["run"]
            assert waited["task"]["state"] == "done", (waited["task"]["error"], run)
            assert run["merge"]["state"] == "merged"
    assert (repo.path / "said.txt").read_text() == "zero\none\ntwo\n"
    assert (repo.path / "other.txt").read_text() == "other\n"
