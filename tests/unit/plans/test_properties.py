"""What holds of every plan, however the documents look."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.model.plan import Document, Plan, PlannedTask, PlanTask
from microvm_orchestrator.plans.plan import plan_documents, plan_tasks

# Which of them share a file is written down here, rather than asked of what is tested.
FILES = ["src/a.py", "src/b.py", "src/*.py", "docs/**", "docs/a.md", "lib"]
SHARING = {
    frozenset(pair)
    for pair in (
        ("src/a.py", "src/*.py"),
        ("src/b.py", "src/*.py"),
        ("docs/**", "docs/a.md"),
    )
} | {frozenset({name}) for name in FILES}

PIECES = [
    *("# H", "## H", "## Task: T", "## [x] Task: D", "Setext", "---", "===", "- item", "* [ ] box"),
    *("  - nested", "1. one", "2) two", "- [x] done", "text", "    code", "```", "~~~", "  ```sh"),
    *("<!-- c", "-->", "<!-- x -->", "`", "> - quote", "| a | b |", "", "", "\t- tab", "  more"),
    *("after: #1", "  after: item, H", "files: src/a.py", "  - files: src/*.py, docs/**", "key: k"),
    *("  key: k", "priority: 5", "labels: a=b", "kind: script", "run:", "  run: make", "files:"),
    *("**after:** #2", "- after: one", "run: `x`", "\r", "\x00", "\ufeff", "\u2028", "- \x1b[0m"),
]
pieces = st.lists(st.sampled_from(PIECES), max_size=40).map("\n".join)
documents = st.lists(pieces | st.text(max_size=300), min_size=1, max_size=3)


def read(texts: list[str], *, infer_files: bool = False) -> Plan | str:
    named = [Document(name=f"{number}.md", text=text) for number, text in enumerate(texts)]
    try:
        return plan_documents(named, infer_files=infer_files)
    except errors.OrchestratorError as error:
        return f"{error.code}: {error.message}"


def files_of(task: PlannedTask, *, infer_files: bool) -> set[str]:
    return {*task.files, *(task.proposed_files if infer_files else ())}


def share(one: set[str], other: set[str]) -> bool:
    return any(frozenset({a, b}) in SHARING for a, b in itertools.product(one, other))


def check(plan: Plan, *, infer_files: bool) -> None:
    """Hold a plan against all that is promised of one."""
    keys = [task.key for task in plan.tasks]
    assert len({*keys}) == len(keys)
    assert sorted(key for wave in plan.waves for key in wave) == sorted(keys)
    waves = {key: number for number, wave in enumerate(plan.waves, 1) for key in wave}
    assert all(plan.waves)
    seen: set[str] = set()
    for task in plan.tasks:
        assert task.wave == waves[task.key]
        above = {edge.task for edge in task.depends_on}
        assert above <= seen, "a task stands before one that it depends on"
        assert task.wave == 1 + max((waves[key] for key in above), default=0)
        assert all(edge.because for edge in task.depends_on)
        seen.add(task.key)
    files = {task.key: files_of(task, infer_files=infer_files) for task in plan.tasks}
    for wave in plan.waves:
        for one, other in itertools.combinations(wave, 2):
            assert not share(files[one], files[other]), (one, other)


@settings(max_examples=400)
@given(texts=documents, infer_files=st.booleans())
def test_any_text_gives_a_plan_or_says_what_is_wrong_and_the_same_each_time(
    texts: list[str], *, infer_files: bool
) -> None:
    found = read(texts, infer_files=infer_files)
    assert found == read(texts, infer_files=infer_files)
    if isinstance(found, Plan):
        check(found, infer_files=infer_files)
    else:
        assert found.partition(":")[0] in {"invalid-input", "cycle-found", "too-large"}


@st.composite
def graphs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw tasks that depend on each other as they like, in rings too."""
    count = draw(st.integers(2, 8))
    return [
        {
            "key": f"t{number}",
            "after": draw(st.lists(st.integers(0, count - 1), max_size=2, unique=True)),
            "files": draw(st.lists(st.sampled_from(FILES), max_size=2, unique=True)),
        }
        for number in range(count)
    ]


def said(task: dict[str, Any], margin: str) -> str:
    return (
        f"{margin}key: {task['key']}\n"
        f"{margin}after: {', '.join(f't{number}' for number in task['after'])}\n"
        f"{margin}files: {', '.join(task['files'])}\n"
    )


def written(tasks: list[dict[str, Any]]) -> dict[str, str]:
    """Write the same tasks in every way that is understood."""
    titles = [f"Do {task['key']}" for task in tasks]
    both = list(zip(titles, tasks, strict=True))
    return {
        "said": "".join(f"### Task: {title}\n\n{said(task, '')}\n" for title, task in both),
        "headings": "# P\n" + "".join(f"## {title}\n{said(task, '')}" for title, task in both),
        "items": "".join(f"- [ ] {title}\n{said(task, '  ')}" for title, task in both),
        "nested": "".join(f"1. {title}\n{said(task, '   - ')}" for title, task in both),
    }


def rings(tasks: list[dict[str, Any]]) -> bool:
    """Tell whether some of the tasks wait for each other: taking off what is free leaves them."""
    left = {number: {*task["after"]} for number, task in enumerate(tasks)}
    while free := [number for number, after in left.items() if not after & left.keys()]:
        for number in free:
            del left[number]
    return bool(left)


def shape(plan: Plan) -> Any:
    edges = {task.key: [(edge.task, edge.why) for edge in task.depends_on] for task in plan.tasks}
    return plan.waves, edges


@settings(max_examples=200)
@given(tasks=graphs())
def test_the_same_tasks_give_the_same_plan_however_they_are_written(
    tasks: list[dict[str, Any]],
) -> None:
    plans = {way: read([text]) for way, text in written(tasks).items()}
    if rings(tasks):
        assert all(str(plan).startswith("cycle-found: ") for plan in plans.values())
        return
    shapes: list[Any] = []
    for plan in plans.values():
        assert isinstance(plan, Plan), plan
        check(plan, infer_files=False)
        shapes.append(shape(plan))
    assert all(other == shapes[0] for other in shapes[1:])


@settings(max_examples=200)
@given(tasks=graphs())
def test_a_plan_that_is_given_back_stays_as_it_is(tasks: list[dict[str, Any]]) -> None:
    if rings(tasks):
        return
    first = read([written(tasks)["items"]])
    assert isinstance(first, Plan)
    told = [PlanTask.model_validate(task.model_dump(mode="json")) for task in first.tasks]
    again = plan_tasks(told, infer_files=False)
    assert again.tasks == first.tasks
    assert again.waves == first.waves


@settings(max_examples=200)
@given(tasks=graphs(), data=st.data())
def test_tasks_that_share_a_file_never_run_together_whatever_is_cancelled(
    tasks: list[dict[str, Any]], data: st.DataObject
) -> None:
    if rings(tasks):
        return
    plan = read([written(tasks)["said"]])
    assert isinstance(plan, Plan)
    by_key = {task.key: task for task in plan.tasks}
    state = dict.fromkeys(by_key, "waiting")
    while waiting := [key for key, now in state.items() if now in {"waiting", "running"}]:
        key = data.draw(st.sampled_from(waiting))
        if state[key] == "running":
            state[key] = data.draw(st.sampled_from(["done", "failed", "cancelled"]))
        elif data.draw(st.booleans()) or not _may_begin(by_key[key], state):
            state[key] = "cancelled"
        else:
            state[key] = "running"
            files = {*by_key[key].files}
            others = [other for other, now in state.items() if now == "running" and other != key]
            assert not [other for other in others if share(files, {*by_key[other].files})]


def _may_begin(task: PlannedTask, state: dict[str, str]) -> bool:
    over = {"done", "failed", "cancelled"}
    return all(
        state[edge.task] in (over if edge.why == "overlap" else {"done"})
        for edge in task.depends_on
    )


def test_tasks_planned_elsewhere_are_named_by_their_place_where_they_have_no_line() -> None:
    tasks = [PlanTask(title="A"), PlanTask(text="B\nand more", depends_on=["nobody"])]
    with pytest.raises(errors.InvalidInput, match="task 2: no task is called 'nobody'"):
        plan_tasks(tasks, infer_files=False)
    with pytest.raises(errors.InvalidInput, match="task 1: it has neither a title nor a text"):
        plan_tasks([PlanTask(files=["x"])], infer_files=False)


def test_an_overlap_that_is_given_is_found_anew() -> None:
    tasks = [
        PlanTask(title="A", files=["x"]),
        PlanTask.model_validate(
            {"title": "B", "depends_on": [{"task": "a", "why": "overlap"}], "wave": 7}
        ),
    ]
    plan = plan_tasks(tasks, infer_files=False)
    assert plan.waves == [["a", "b"]]
