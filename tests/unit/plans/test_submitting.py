"""Plans as the service takes them: what becomes of a task, and who may claim it when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from calling import VIEWER, House, house
from git_repos import Repo
from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncGenerator[House]:
    async with house(tmp_path) as kept:
        yield kept


def document(text: str) -> dict[str, Any]:
    return {"documents": [{"name": "TODO.md", "text": text}]}


async def tasks_of(kept: House, answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        task["key"]: await kept.ask("task_get", task_id=task["task_id"]) for task in answer["tasks"]
    }


async def claimed(kept: House) -> list[str]:
    answer = await kept.ask("task_claim", worker="w", count=10)
    return [item["task"]["key"] for item in answer["tasks"]]


TODO = """
- [x] Choose a database
- [ ] Add the users table
  Done when the migration runs.
  - files: db/
- [ ] Add the login page
  after: add-the-users-table
  files: src/login.py
  priority: 7
  labels: team=web
- [ ] Speed up the migrations in `db/schema.sql`
  files: db/migrate.py
"""


async def test_a_plan_becomes_a_graph_with_its_tasks_in_order(kept: House) -> None:
    given = {**document(TODO), "group": "g", "labels": {"a": "b"}, "priority": "high"}
    answer = await kept.ask("plan_submit", **given, capabilities=["gpu"], role="builder")
    assert [(task["key"], task["state"]) for task in answer["tasks"]] == [
        ("add-the-users-table", "ready"),
        ("add-the-login-page", "blocked"),
        ("speed-up-the-migrations-in-db-schema-sql", "blocked"),
    ]
    keys = [task["key"] for task in answer["tasks"]]
    assert (answer["group"], answer["waves"]) == ("g", [keys[:1], keys[1:]])
    assert [done["title"] for done in answer["skipped"]] == ["Choose a database"]
    table, login, faster = (await tasks_of(kept, answer)).values()
    assert table["title"] == "Add the users table"
    assert table["description"] == "Add the users table\nDone when the migration runs."
    assert table["input"] == {"files": ["db/**"], "document": "TODO.md", "line": 3}
    assert (table["priority"], table["labels"]) == (100, {"a": "b"})
    assert (table["capabilities"], table["role"], table["run"]) == (["gpu"], "builder", None)
    assert (login["priority"], login["labels"]) == (7, {"a": "b", "team": "web"})
    [[declared], [shared]] = [
        [edge for gate in task["depends_on"] for edge in gate.get("of", [gate])]
        for task in (login, faster)
    ]
    assert (declared["task"], declared["on"]) == (table["task_id"], "success")
    assert (shared["task"], shared["on"]) == (table["task_id"], "finish")


async def test_what_shares_files_goes_on_when_the_one_before_has_failed(kept: House) -> None:
    await kept.ask("plan_submit", **document(TODO), group="g")
    [held] = (await kept.ask("task_claim", worker="w", count=10))["tasks"]
    await kept.ask(
        "task_fail",
        worker="w",
        task_id=held["task"]["task_id"],
        token=held["lease"]["token"],
        message="no",
    )
    assert await claimed(kept) == ["speed-up-the-migrations-in-db-schema-sql"]


async def test_a_task_does_not_begin_beside_another_because_the_one_between_was_cancelled(
    kept: House,
) -> None:
    text = "- A\n  files: x\n- B\n  files: x\n- C\n  files: x\n"
    await kept.ask("plan_submit", **document(text))
    assert await claimed(kept) == ["a"]
    await kept.ask("task_cancel", task_id="b")
    assert await claimed(kept) == []
    assert (await kept.ask("task_get", task_id="c"))["state"] == "blocked"


async def test_a_repeated_plan_is_taken_once(kept: House) -> None:
    given = {**document(TODO), "idempotency_key": "k"}
    first = await kept.ask("plan_submit", **given)
    again = await kept.ask("plan_submit", **given)
    assert again == {**first, "replayed": True}
    with pytest.raises(errors.KeyReused):
        await kept.ask("plan_submit", **given, priority="low")


async def test_the_answer_of_plan_tasks_can_be_submitted(kept: House) -> None:
    plan = await kept.ask("plan_tasks", **document(TODO), infer_files=True, by=VIEWER)
    again = await kept.ask("plan_tasks", tasks=plan["tasks"], infer_files=True)
    assert {**again, "skipped": plan["skipped"]} == plan
    answer = await kept.ask("plan_submit", tasks=plan["tasks"], infer_files=True)
    assert answer["waves"] == plan["waves"]
    faster = (await tasks_of(kept, answer))["speed-up-the-migrations-in-db-schema-sql"]
    assert faster["input"]["files"] == ["db/migrate.py", "db/schema.sql"]


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "- A": ({}, None),
    "- A\n  repo: site": ({}, {"kind": "agent", "repo": "site"}),
    "- A ": ({"repo": "site", "image": "node"}, {"kind": "agent", "repo": "site", "image": "node"}),
    "- A\n  kind: manual": ({"repo": "site"}, None),
    "- A\n  run: make all": ({}, {"kind": "script", "script": "make all"}),
    "- A\n  kind: command\n  run: make 'a b' \"$X\"": (
        {"repo": "site", "kind": "agent"},
        {"kind": "command", "repo": "site", "argv": ["make", "a b", "$X"]},
    ),
    "- A\n  image: other\n  repo: lib": (
        {"repo": "site", "image": "node", "kind": "agent"},
        {"kind": "agent", "repo": "lib", "image": "other"},
    ),
}


@pytest.mark.parametrize("text", RUNS)
async def test_what_this_host_is_to_run_follows_from_task_and_defaults(
    kept: House, tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    defaults, expected = RUNS[text]
    for alias in ("site", "lib"):
        repo = Repo.make(tmp_path_factory.mktemp(alias) / alias)
        repo.commit({"README": "a sample\n"})
        await kept.ask("repo_add", path=str(repo.path), alias=alias)
    answer = await kept.ask("plan_submit", **document(text), **defaults)
    run = (await tasks_of(kept, answer))["a"]["run"]
    assert (run is None) == (expected is None)
    assert expected is None or {name: run[name] for name in expected} == expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing at all": ({}, "there is nothing to submit: no task found"),
    "both": (
        {**document("- A"), "tasks": [{"title": "A"}]},
        "give either `documents` or `tasks`",
    ),
    "no task": (document(" \n"), "there is nothing to submit: no task found"),
    "nothing left to do": (document("- [x] A"), "there is nothing to submit: all is done"),
    "an agent with a script": (
        document("- A\n  kind: agent\n  run: x"),
        "task a is of the kind agent, which has no use for `run`",
    ),
    "a command without words": (document("- A\n  kind: command"), "task a: "),
    "a script without a text": (document("- A\n  kind: script"), "task a: "),
    "a command with an open quote": (
        document("- A\n  kind: command\n  run: make 'x"),
        "task a: its command is not written well",
    ),
    "a path as a document": ({"documents": ["/etc/passwd"]}, "documents.0: "),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_plan_that_cannot_be_run_is_refused_whole(kept: House, case: str) -> None:
    given, sentence = REFUSED[case]
    with pytest.raises(errors.InvalidInput) as refusal:
        await kept.ask("plan_submit", **given)
    assert sentence in refusal.value.message
    assert (await kept.ask("task_list"))["items"] == []


async def test_who_may_look_may_plan_and_not_submit(kept: House) -> None:
    await kept.ask("plan_tasks", **document(TODO), by=VIEWER)
    with pytest.raises(errors.Denied):
        await kept.ask("plan_submit", **document(TODO), by=VIEWER)
