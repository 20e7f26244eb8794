"""What cannot be planned, and the line that is to blame."""

from __future__ import annotations

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.model.plan import Document, PlanTask
from microvm_orchestrator.plans.plan import plan_documents, plan_tasks

Refusal = type[errors.OrchestratorError]


def refused(kind: Refusal, *texts: str) -> errors.OrchestratorError:
    documents = [Document(name=f"{number}.md", text=text) for number, text in enumerate(texts, 1)]
    with pytest.raises(kind) as refusal:
        plan_documents(documents, infer_files=False)
    return refusal.value


TWICE = "was said already on line 2; nested items are part of the task they stand in"
WRONG = {
    "an unknown name": (
        "- A\n- B\n  after: nobody\n",
        "1.md line 3: no task is called 'nobody'",
    ),
    "an unknown number": ("- A\n  after: #3\n", "1.md line 2: no task is called '#3'"),
    "another document": ("- A\n  after: 2.md#1\n", "1.md line 2: no task is called '2.md#1'"),
    "a title that two have": (
        "- A\n- B\n- a\n- C\n  after: A\n",
        "1.md line 5: 'A' may mean 2 tasks: 1.md line 1, 1.md line 3",
    ),
    "a number that two lists have": (
        "1. A\n\ntext\n\n1. B\n   after: #1\n",
        "1.md line 6: '#1' may mean 2 tasks: 1.md line 1, 1.md line 5",
    ),
    "a key that two have": (
        "- A\n  key: x\n- B\n  key: x\n",
        "1.md line 3: key x is that of 1.md line 1 already",
    ),
    "a key like a number": (
        "- A\n  key: #2\n",
        "1.md line 1: key #2 looks like a number; choose another",
    ),
    "a path out of the tree": (
        "- A\n  files: src/../../x\n",
        "1.md line 2: file 'src/../../x' leads out of the repository",
    ),
    "an absolute path": (
        "- A\n  files: /etc/passwd\n",
        "1.md line 2: file '/etc/passwd' is no path within the repository",
    ),
    "a path of another system": (
        "- A\n  files: src\\a.py\n",
        "1.md line 2: file 'src\\\\a.py' is written with / between its parts",
    ),
    "a label without a value": (
        "- A\n  labels: web\n",
        "1.md line 2: label 'web' is not key=value",
    ),
    "a word said twice": (
        "- A\n  priority: 1\n  - part\n    priority: 2\n",
        f"1.md line 4: `priority` {TWICE}",
    ),
    "a word without a value": ("- A\n  priority:\n- B\n", "1.md line 2: `priority` has no value"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_line(case: str) -> None:
    text, sentence = WRONG[case]
    assert refused(errors.InvalidInput, text).message == sentence


@pytest.mark.parametrize(
    "said", ["priority: 5000", "priority: soon", "kind: robot", "labels: a b=c", "repo: a/b"]
)
def test_a_value_that_does_not_fit_is_told_with_its_line(said: str) -> None:
    message = refused(errors.InvalidInput, f"- A\n- B\n  {said}\n").message
    assert message.startswith(f"1.md line 3: `{said.partition(':')[0]}`: ")


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    refusal = refused(errors.InvalidInput, "- Build the site\n- B\n  after: build-the-sites\n")
    assert refusal.hint == "perhaps build-the-site?"


def test_all_that_is_wrong_is_told_at_once_but_not_without_end() -> None:
    text = "".join(f"- T{number}\n  after: nobody{number}\n" for number in range(30))
    message = refused(errors.InvalidInput, text).message
    assert message.startswith("1.md line 2: no task is called 'nobody0'; 1.md line 4: ")
    assert message.endswith(" (and 22 more)")


def test_a_cycle_is_named_with_its_lines() -> None:
    message = refused(
        errors.CycleFound, "- Z\n- A\n  after: C\n- B\n  after: A\n", "- C\n  after: B\n"
    ).message
    assert message == (
        "tasks would wait for each other: "
        "a (1.md line 2) -> c (2.md line 1) -> b (1.md line 4) -> a (1.md line 2)"
    )
    message = refused(errors.CycleFound, "- A\n  after: #1\n").message
    assert message == "tasks would wait for each other: a (1.md line 1) -> a (1.md line 1)"


def test_a_long_cycle_is_told_in_short() -> None:
    text = "".join(f"- T{number}\n  after: T{(number + 1) % 100}\n" for number in range(100))
    message = refused(errors.CycleFound, text).message
    assert "…" in message
    assert len(message) < 500


def test_two_documents_of_one_name_are_refused() -> None:
    document = Document(name="x.md", text="- A\n")
    with pytest.raises(errors.InvalidInput, match=r"two documents are called x\.md"):
        plan_documents([document, document], infer_files=False)


# Each just above a limit.
LARGE = {
    "a line": ["- " + "x" * 16_384],
    "a nesting": ["- A\n" + " " * 201 + "- B\n"],
    "tasks": ["- A\n" * 1001],
    "tasks of all documents": ["- A\n" * 501] * 2,
    "documents": ["x" * 262_144] * 5,
    "files": [
        "".join(
            f"- T{task}\n" + "".join(f"  files: {task}/{file}\n" for file in range(101))
            for task in range(100)
        )
    ],
    "dependencies": ["- A\n  files: x\n" * 250],
    "braces": ["- A\n  files: " + "{a,b}" * 6 + "\n- B\n  files: c\n"],
}


@pytest.mark.parametrize("case", LARGE)
def test_what_is_too_large_is_refused(case: str) -> None:
    texts = LARGE[case]
    assert refused(errors.TooLarge, *texts).message


def test_globs_that_take_too_long_to_compare_are_refused() -> None:
    tasks = [
        PlanTask(
            title=f"T{task}",
            files=[f"{'a*' * 40}{task}x{file}*{'b*' * 20}" for file in range(50)],
        )
        for task in range(20)
    ]
    with pytest.raises(errors.TooLarge, match="too many, or too alike"):
        plan_tasks(tasks, infer_files=False)


@pytest.mark.parametrize(
    "text",
    [
        "- A\n  after: " + "x," * 8000 + "\n",
        "- A\n" + "  after: nobody-at-all\n" * 10_000,
        "x" + "`" * 16_000 + "\n`" + "<!-- `` " * 1600 + "\n- A\n  after: x\n",
        "#" * 16_000 + "\n- A" + " " * 16_000 + "#\n  after: x\n",
        "- A\n  " + "*" * 16_000 + "after: x\n  task" + " " * 16_000 + "1\n  after: x\n",
        "- `" + "a/" * 8000 + "`\n  after: x\n",
    ],
    ids=["names", "lines", "comments", "headings", "emphasis", "paths"],
)
def test_what_is_made_to_take_long_is_refused_like_anything_else(text: str) -> None:
    assert refused(errors.InvalidInput, text).message
