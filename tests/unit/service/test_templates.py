from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from calling import OPERATOR, VIEWER, house
from microvm_orchestrator import errors

if TYPE_CHECKING:
    from pathlib import Path

BUILD: dict[str, Any] = {
    "description": "build one target",
    "parameters": {
        "target": {"description": "what to build"},
        "jobs": {"type": "integer", "default": 2, "min": 1, "max": 64},
        "after": {"type": "strings", "default": []},
        "fast": {"type": "boolean", "default": True},
        "level": {"type": "choice", "choices": ["debug", "release"], "default": "debug"},
        "share": {"type": "number", "default": 0.5, "max": 1},
    },
    "tasks": [
        {
            "key": "build-{{target}}",
            "title": "build {{ target }} with {{jobs}} jobs, fast={{fast}}",
            "description": "write \\{{target}} as it stands",
            "labels": {"target": "{{target}}", "level": "{{level}}"},
            "depends_on": {"$param": "after"},
            "input": {"jobs": {"$param": "jobs"}, "share": [{"$param": "share"}], "n": None},
        },
        {"key": "test-{{target}}", "depends_on": ["build-{{target}}"]},
    ],
}


def one(**task: object) -> dict[str, Any]:
    return {"tasks": [task]}


async def test_each_save_is_a_new_version_unless_it_says_the_same(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        first = await home.ask("template_save", name="build", **BUILD)
        again = await home.ask("template_save", name="build", **BUILD)
        changed = await home.ask("template_save", name="build", **BUILD | {"description": "new"})

        assert first == {"name": "build", "version": 1, "created": True}
        assert again == {"name": "build", "version": 1, "created": False}
        assert changed == {"name": "build", "version": 2, "created": True}
        newest = await home.ask("template_get", name="build")
        assert (newest["version"], newest["description"]) == (2, "new")
        oldest = await home.ask("template_get", name="build", version=1)
        assert oldest["description"] == "build one target"
        assert oldest["tasks"] == BUILD["tasks"]


async def test_savers_who_meet_get_a_version_each(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        versions: list[int] = []

        async def save(number: int) -> None:
            saved = await home.ask("template_save", name="t", **one(title=f"saver {number}"))
            versions.append(saved["version"])

        async with anyio.create_task_group() as savers:
            for number in range(12):
                savers.start_soon(save, number)

        assert sorted(versions) == list(range(1, 13))
        assert (await home.ask("template_get", name="t"))["version"] == 12


async def test_the_newest_of_many_versions_is_found(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        for number in range(1, 19):
            saved = await home.ask("template_save", name="t", **one(title=f"{number}"))
            assert saved["version"] == number
            newest = await home.ask("template_get", name="t")
            assert newest["tasks"] == [{"title": f"{number}"}]


async def test_a_list_has_each_template_once_and_goes_on_at_its_cursor(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        for name in ("b", "a-long", "a", "c"):
            await home.ask("template_save", name=name, **one(title="first"))
        await home.ask("template_save", name="b", **one(title="second"))
        await home.ask("template_delete", name="a-long")

        seen: list[tuple[str, int]] = []
        cursor: str | None = None
        while True:
            more = {} if cursor is None else {"cursor": cursor}
            page = await home.ask("template_list", limit=1, by=VIEWER, **more)
            seen += [(item["name"], item["version"]) for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break

        assert seen == [("a", 1), ("b", 2), ("c", 1)]


async def test_a_preview_shows_the_tasks_with_their_values_and_makes_none(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.ask("template_save", name="build", **BUILD)
        shown = await home.ask(
            "template_preview",
            name="build",
            parameters={"target": "core", "after": ["t1", "t2"], "jobs": 8, "level": "release"},
            by=VIEWER,
        )

        build, test = shown["tasks"]
        assert shown["template"] == "build@1"
        assert build["key"] == "build-core"
        assert build["title"] == "build core with 8 jobs, fast=true"
        assert build["description"] == "write {{target}} as it stands"
        assert build["labels"] == {"target": "core", "level": "release"}
        assert build["depends_on"] == ["t1", "t2"]
        assert build["input"] == {"jobs": 8, "share": [0.5], "n": None}
        assert test["depends_on"] == ["build-core"]
        assert (await home.ask("task_list"))["items"] == []


@pytest.mark.parametrize(
    "hostile",
    [
        "{{secret}}",
        '"}, {"key": "injected',
        '{"$param": "jobs"}',
        "\\{{jobs}}",
        "{% import os %}${7*7}",
        "${jobs} %(jobs)s \\1 \\g<0>",
    ],
)
async def test_a_value_is_data_whatever_it_looks_like(tmp_path: Path, hostile: str) -> None:
    template: dict[str, Any] = {
        "parameters": {"text": {}, "secret": {"default": "leaked"}},
        "tasks": [{"title": "<{{text}}>", "input": {"$param": "text"}, "role": "{{secret}}"}],
    }
    async with house(tmp_path) as home:
        await home.ask("template_save", name="t", **template)
        shown = await home.ask("template_preview", name="t", parameters={"text": hostile})
        assert shown["tasks"][0]["title"] == f"<{hostile}>"
        assert shown["tasks"][0]["input"] == hostile
        assert len(shown["tasks"]) == 1


async def test_a_run_submits_the_graph_and_says_which_version_made_it(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.ask("template_save", name="build", **BUILD)
        await home.ask("template_save", name="build", **BUILD | {"description": "newer"})
        ran = await home.ask(
            "template_run", name="build", parameters={"target": "core"}, group="g", by=OPERATOR
        )

        assert (ran["template"], ran["group"], ran["replayed"]) == ("build@2", "g", False)
        assert [(task["key"], task["state"]) for task in ran["tasks"]] == [
            ("build-core", "ready"),
            ("test-core", "blocked"),
        ]
        task = await home.ask("task_get", task_id="test-core", group="g")
        assert (task["template"], task["owner"]) == ("build@2", "operator")
        assert task["waiting_for"] == [ran["tasks"][0]["task_id"]]


async def test_a_run_with_a_prefix_has_a_group_of_its_own(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.ask("template_save", name="t", group_prefix="nightly", **one(key="same"))
        first = await home.ask("template_run", name="t")
        second = await home.ask("template_run", name="t")

        assert first["group"].startswith("nightly")
        assert first["group"] != second["group"]
        assert first["tasks"][0]["group"] == first["group"]


async def test_a_repeated_run_with_the_same_key_makes_nothing_twice(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.ask("template_save", name="t", group_prefix="p", **one(title="once"))
        first = await home.ask("template_run", name="t", idempotency_key="k")
        again = await home.ask("template_run", name="t", idempotency_key="k")

        assert again == first | {"replayed": True}
        assert len((await home.ask("task_list"))["items"]) == 1
        with pytest.raises(errors.KeyReused):
            await home.ask("template_run", name="t", group="other", idempotency_key="k")


async def test_what_callers_must_give_is_judged_when_they_have(tmp_path: Path) -> None:
    # Neither the names nor the numbers that stand in for the values are fit for these fields.
    template: dict[str, Any] = {
        "parameters": {"_who": {}, "long": {"type": "number", "min": 1e9}, "_up": {}},
        "tasks": [
            {"role": "{{_who}}", "timeout_s": {"$param": "long"}, "depends_on": ["{{_up}}"]},
            {"capabilities": ["{{_who}}"]},
        ],
    }
    values = {"_who": "builder", "long": 2e9, "_up": "x"}
    async with house(tmp_path) as home:
        await home.ask("template_save", name="t", **template)
        with pytest.raises(errors.InvalidInput, match=r"tasks\.0\.timeout_s"):
            await home.ask("template_run", name="t", parameters=values)


async def test_a_run_that_fails_in_part_makes_nothing(tmp_path: Path) -> None:
    # What the keys come to is known only with the values.
    template: dict[str, Any] = {
        "parameters": {"a": {}, "b": {}},
        "tasks": [{"key": "{{a}}"}, {"key": "{{b}}"}],
    }
    async with house(tmp_path) as home:
        await home.ask("template_save", name="t", **template)
        with pytest.raises(errors.AlreadyExists):
            await home.ask("template_run", name="t", parameters={"a": "same", "b": "same"})
        assert (await home.ask("task_list"))["items"] == []


async def test_a_deleted_version_is_gone_and_its_number_stays_taken(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        for title in ("one", "two", "three"):
            await home.ask("template_save", name="t", **one(title=title))
        assert await home.ask("template_delete", name="t", version=3) == {
            "name": "t",
            "versions": [3],
        }
        assert (await home.ask("template_get", name="t"))["version"] == 2
        with pytest.raises(errors.NotFound, match="no template t@3"):
            await home.ask("template_get", name="t", version=3)
        with pytest.raises(errors.NotFound):
            await home.ask("template_delete", name="t", version=3)

        saved = await home.ask("template_save", name="t", **one(title="two"))
        assert saved == {"name": "t", "version": 4, "created": True}
        assert (await home.ask("template_delete", name="t"))["versions"] == [1, 2, 4]
        assert (await home.ask("template_list"))["items"] == []
        for call in ("template_get", "template_preview", "template_run", "template_delete"):
            with pytest.raises(errors.NotFound, match="no template t"):
                await home.ask(call, name="t")
        assert (await home.ask("template_save", name="t", **one(title="two")))["version"] == 5


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a hole without a parameter": (one(title="{{ghost}}"), "no parameter is named ghost"),
    "a parameter without a hole": (
        {"parameters": {"idle": {}}, **one(title="x")},
        "parameter idle is not used",
    ),
    "a hole that is none": (one(title="{{no name}}"), "is no {{name}}"),
    "an expression": (one(title="{{a.b()}}"), "is no {{name}}"),
    "a list within a text": (
        {"parameters": {"xs": {"type": "strings"}}, **one(title="{{xs}}")},
        "xs is a list",
    ),
    "a hole in the name of a member": (
        {"parameters": {"x": {}}, **one(title="{{x}}", labels={"{{x}}": "y"})},
        "only values take holes",
    ),
    "company for $param": (
        {"parameters": {"x": {}}, **one(input={"$param": "x", "other": 1})},
        "stands alone",
    ),
    "a $param that is no name": (one(input={"$param": 7}), "stands alone"),
    "a field that no task has": (one(titel="x"), "tasks.0.titel: Extra inputs"),
    "a group in a task": (one(group="g"), "tasks.0.group: Extra inputs"),
    "a value that no task takes": (one(priority=5000), "tasks.0.priority"),
    "a default that no task takes": (
        {
            "parameters": {"p": {"type": "integer", "default": 5000}},
            **one(priority={"$param": "p"}),
        },
        "tasks.0.priority",
    ),
    "the same key twice": ({"tasks": [{"key": "a"}, {"key": "a"}]}, "2 tasks have the key a"),
}


@pytest.mark.parametrize(("template", "told"), REFUSED.values(), ids=REFUSED)
async def test_a_template_that_cannot_work_is_not_saved(
    tmp_path: Path, template: dict[str, Any], told: str
) -> None:
    async with house(tmp_path) as home:
        with pytest.raises(errors.TemplateInvalid) as refusal:
            await home.ask("template_save", name="t", **template)
        assert told in str(refusal.value)
        assert (await home.ask("template_list"))["items"] == []


async def test_a_cycle_is_refused_with_its_tasks_named(tmp_path: Path) -> None:
    tasks = [
        {"key": "a", "depends_on": [{"of": ["c", "elsewhere"], "need": "any"}]},
        {"key": "b", "depends_on": [{"task": "a", "on": "failure"}]},
        {"key": "c", "depends_on": ["b"]},
    ]
    async with house(tmp_path) as home:
        with pytest.raises(errors.CycleFound) as refusal:
            await home.ask("template_save", name="t", tasks=tasks)
        assert {"a", "b", "c"} <= set(str(refusal.value).rpartition(": ")[2].split(" -> "))


UNFIT_PARAMETERS: dict[str, dict[str, Any]] = {
    "required and a default": {"required": True, "default": "x"},
    "neither required nor a default": {"required": False},
    "a default of another type": {"type": "integer", "default": "7"},
    "a default past its bound": {"type": "integer", "default": 7, "max": 6},
    "a default that is no choice": {"type": "choice", "choices": ["a"], "default": "b"},
    "a choice of nothing": {"type": "choice"},
    "choices of a number": {"type": "number", "choices": ["1"]},
    "bounds of a boolean": {"type": "boolean", "min": 0},
    "bounds that cross": {"min": 5, "max": 4},
    "a pattern for a number": {"type": "integer", "pattern": "1"},
    "a broken pattern": {"pattern": "("},
    "a pattern that escapes its anchors": {"pattern": "a)|(b"},
    "look-around": {"pattern": "(?=a)a"},
    "a back-reference": {"pattern": "(a)\\1"},
    "a pattern that explodes when compiled": {"pattern": "(((a{1000}){1000}){1000})"},
    "an unknown type": {"type": "object"},
    "an unknown member": {"defualt": "x"},
}


@pytest.mark.parametrize("parameter", UNFIT_PARAMETERS.values(), ids=UNFIT_PARAMETERS)
async def test_a_parameter_that_contradicts_itself_is_refused(
    tmp_path: Path, parameter: dict[str, Any]
) -> None:
    async with house(tmp_path) as home:
        with pytest.raises(errors.InvalidInput, match=r"parameters\.x"):
            await home.ask(
                "template_save", name="t", parameters={"x": parameter}, **one(title="{{x}}")
            )


VALUES: list[tuple[dict[str, Any], object, str | None]] = [
    ({}, "any text", None),
    ({}, 5, "x must be a string"),
    ({}, None, "x must be a string"),
    ({"min": 2, "max": 3}, "a", "at least 2 characters long"),
    ({"min": 2, "max": 3}, "abcd", "at most 3 characters long"),
    ({"pattern": "[a-z]+"}, "abc", None),
    ({"pattern": "[a-z]+"}, "abc\n", "must match"),
    ({"pattern": "[a-z]+"}, "ab1", "must match"),
    ({"pattern": "(?m)a"}, "b\na", "must match"),
    ({"pattern": "(a+)+"}, "a" * 100_000 + "!", "must match"),
    ({"type": "integer", "min": 1}, 7, None),
    ({"type": "integer"}, 10**300, None),
    ({"type": "integer", "min": 1}, 0, "at least 1"),
    ({"type": "integer"}, 7.0, "must be an integer"),
    ({"type": "integer"}, True, "must be an integer"),
    ({"type": "integer"}, "7", "must be an integer"),
    ({"type": "number", "max": 1}, 0.5, None),
    ({"type": "number", "max": 1}, 1.5, "at most 1"),
    ({"type": "integer"}, 10**400, "holds a number that JSON has not"),
    ({"type": "number"}, float("nan"), "holds a number that JSON has not"),
    ({"type": "number"}, float("inf"), "holds a number that JSON has not"),
    ({"type": "boolean"}, False, None),
    ({"type": "boolean"}, 0, "must be true or false"),
    ({"type": "choice", "choices": ["a", "b"]}, "b", None),
    ({"type": "choice", "choices": ["a", "b"]}, "c", "must be one of a, b"),
    ({"type": "strings", "max": 2, "pattern": "[a-z]"}, ["a", "b"], None),
    ({"type": "strings", "max": 2}, ["a", "b", "c"], "at most 2 items long"),
    ({"type": "strings", "pattern": "[a-z]"}, ["a", "1"], "must match"),
    ({"type": "strings"}, ["a", 1], "must be a list of strings"),
    ({"type": "strings"}, "a", "must be a list of strings"),
]


@pytest.mark.parametrize(("parameter", "value", "told"), VALUES)
async def test_a_value_fits_its_parameter_or_is_refused(
    tmp_path: Path, parameter: dict[str, Any], value: object, told: str | None
) -> None:
    async with house(tmp_path) as home:
        await home.ask(
            "template_save", name="t", parameters={"x": parameter}, **one(input={"$param": "x"})
        )
        asked = home.ask("template_preview", name="t", parameters={"x": value})
        if told is None:
            assert (await asked)["tasks"][0]["input"] == value
        else:
            with pytest.raises(errors.InvalidInput) as refusal:
                await asked
            assert told in str(refusal.value)


async def test_missing_and_unknown_arguments_are_named_together(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.ask("template_save", name="build", **BUILD)
        with pytest.raises(errors.TemplateInvalid) as refusal:
            await home.ask("template_run", name="build", parameters={"traget": "x", "jobs": 0})
        assert str(refusal.value) == (
            "no parameter is named traget; target needs a value; jobs must be at least 1"
        )


async def test_a_small_template_cannot_grow_without_bound(tmp_path: Path) -> None:
    template: dict[str, Any] = {
        "parameters": {"x": {}},
        "tasks": [{"input": ["{{x}}" * 100] * 10} for _ in range(10)],
    }
    async with house(tmp_path) as home:
        await home.ask("template_save", name="t", **template)
        with pytest.raises(errors.TooLarge, match="the template's tasks come to more"):
            await home.ask("template_run", name="t", parameters={"x": "y" * 200_000})


async def test_a_viewer_may_look_at_templates_and_the_attempt_to_do_more_is_audited(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as home:
        await home.ask("template_save", name="t", **one(title="x"), by=OPERATOR)
        assert (await home.ask("template_get", name="t", by=VIEWER))["saved_by"] == "operator"
        for call in ("template_save", "template_run", "template_delete"):
            with pytest.raises(errors.Denied):
                await home.ask(call, name="t", by=VIEWER)

        rows = (await home.ask("audit_list"))["items"]
        told = [(row["actor"], row["action"], row["target"], row["outcome"]) for row in rows]
        assert told == [
            ("viewer", "template_delete", "t", "denied"),
            ("viewer", "template_run", "t", "denied"),
            ("viewer", "template_save", "t", "denied"),
            ("operator", "template_save", "t@000001", "ok"),
        ]
