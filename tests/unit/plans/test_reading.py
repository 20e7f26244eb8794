"""Documents and the tasks that are read from them."""

from __future__ import annotations

from typing import Any

import pytest

from microvm_orchestrator.model.plan import Document, Plan
from microvm_orchestrator.plans.plan import plan_documents


def planned(*texts: str, infer_files: bool = False) -> Plan:
    documents = [
        Document(name=f"{chr(ord('a') + number)}.md", text=text)
        for number, text in enumerate(texts)
    ]
    return plan_documents(documents, infer_files=infer_files)


HEADINGS = {
    "those that say so, on any level": (
        """
# Project
## Overview
Some words.
## Task: Add login
Users log in.

### Details
With a password.
### Task 7: Add logout
Users leave.
# Appendix
Nothing to do.
""",
        {
            "add-login": "Add login\n\nUsers log in.\n\n### Details\nWith a password.",
            "add-logout": "Add logout\n\nUsers leave.",
        },
    ),
    "those of the level that repeats with text below": (
        """
# Project
A title and an introduction.

## Add login
Users log in.
- [ ] a form
- [ ] a session

## Add logout
Users leave.
""",
        {
            "add-login": "Add login\n\nUsers log in.\n- [ ] a form\n- [ ] a session",
            "add-logout": "Add logout\n\nUsers leave.",
        },
    ),
    "the deeper ones, where those above have no text of their own": (
        "# Phase 1\n## A\nx\n## B\ny\n# Phase 2\n## C\nz\n",
        {"a": "A\n\nx", "b": "B\n\ny", "c": "C\n\nz"},
    ),
    "underlined ones": (
        "Add login\n---------\nUsers log in.\n\nAdd logout\n---\nUsers leave.\n",
        {"add-login": "Add login\n\nUsers log in.", "add-logout": "Add logout\n\nUsers leave."},
    ),
    "some with nothing but a title": (
        "## A\nx\n## B\n## C\ny\n",
        {"a": "A\n\nx", "b": "B", "c": "C\n\ny"},
    ),
    "closed and numbered ones": (
        "## 1. A ##\nx\n## #2: B\ny\n",
        {"a": "A\n\nx", "b": "B\n\ny"},
    ),
    "none in code and none in a comment": (
        """
## Task: A
```markdown
## Task: no task
- after: nobody
```
<!-- ## Task: gone -->
<!--
## Task: gone too
-->
~~~~
~~~
## Task: still code
~~~~
## Task: B
""",
        {
            "a": "A\n\n```markdown\n## Task: no task\n- after: nobody\n```\n"
            "~~~~\n~~~\n## Task: still code\n~~~~",
            "b": "B",
        },
    ),
    "with the white space of code kept": (
        "## Task: A\n```make\nall:\n\tcc -o x x.c\n```\n",
        {"a": "A\n\n```make\nall:\n\tcc -o x x.c\n```"},
    ),
}


@pytest.mark.parametrize("case", HEADINGS)
def test_headings_are_tasks(case: str) -> None:
    text, expected = HEADINGS[case]
    assert {task.key: task.text for task in planned(text).tasks} == expected


LISTS = {
    "items with boxes, below headings of sections": (
        "# Todo\n## Backend\n- [ ] A\n- [x] Done\n* [X] Done too\n## Frontend\n+ [ ] B\n",
        {"a": "A", "b": "B"},
    ),
    "items of a section, though others have a text": (
        "## Overview\nWords.\n## Notes\nWords.\n## Tasks\n- A\n- B\n",
        {"a": "A", "b": "B"},
    ),
    "items with a text of their own, below headings": (
        "## Backend\n- A\n  more\n  ```\n  x\n  ```\n## Frontend\n- B\nmore\n",
        {"a": "A\nmore\n```\nx\n```", "b": "B\nmore"},
    ),
    "what is nested is part of its item": (
        "- A\n  more of A\n\n  and more\n  - [ ] part one\n    - deeper\n  - [x] part two\n- B\n",
        {
            "a": "A\nmore of A\n\nand more\n- [ ] part one\n  - deeper\n- [x] part two",
            "b": "B",
        },
    ),
    "numbered ones, nested by two columns": (
        "1. A\n  - part of A\n2) B\n   goes on\n10. C\n",
        {"a": "A\n- part of A", "b": "B\ngoes on", "c": "C"},
    ),
    "a paragraph that goes on at the margin": (
        "- A\nstill A\n- B\n",
        {"a": "A\nstill A", "b": "B"},
    ),
    "code below an item, wherever it stands": (
        "- A\n  ```sh\n  - echo x\n# y\n  ```\n- B\n",
        {"a": "A\n```sh\n- echo x\n# y\n```", "b": "B"},
    ),
    "tabs": ("-\tA\n\t- part\n-\tB\n", {"a": "A\n- part", "b": "B"}),
    "lines between topics and emphasis are no items": (
        "- A\n\n* * *\n\n- B\n\n---\n",
        {"a": "A", "b": "B"},
    ),
    "front matter and a mark of the byte order": (
        "\ufeff---\ntitle: x\n- no task\n---\n- A\n",
        {"a": "A"},
    ),
    "line ends of every kind": ("- A\r\n  x\r\n- B\r- C\n", {"a": "A\nx", "b": "B", "c": "C"}),
    "comments between and within items": (
        "- A <!-- - gone --> B\n<!-- - gone\n- gone too --> \n- C `<!-- kept -->`\n",
        {"a-b": "A  B", "c-kept": "C `<!-- kept -->`"},
    ),
    "titles that are the same": ("- A\n- A\n- A\n", {"a": "A", "a-2": "A", "a-3": "A"}),
    "titles without letters": ("- !!!\n- 安装\n", {"task": "!!!", "安装": "安装"}),
}


@pytest.mark.parametrize("case", LISTS)
def test_items_are_tasks_where_no_headings_are(case: str) -> None:
    text, expected = LISTS[case]
    assert {task.key: task.text for task in planned(text).tasks} == expected


WHOLE = {
    "a heading and a text": ("# Add login\n\nUsers log in.\n", "Add login\n\nUsers log in."),
    "a text": ("Add login.\nUsers log in.\n", "Add login.\nUsers log in."),
    "a quoted list": ("Add login\n> - no task\n> - none\n", "Add login\n> - no task\n> - none"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_document_with_neither_is_one_task(case: str) -> None:
    text, expected = WHOLE[case]
    [task] = planned(text).tasks
    assert task.text == expected


SAID = """
- A
  - **Key:** alpha
  - *Priority*: 5
  - labels: team=web, area=log in
  - files: `src/a.py`, ./tests//*, "docs/a, b.md", lib/{x,y}.py
- B
  key: beta
  depends on: A
  files:
  - src/b.py
  - src/c/
  kind: Command
  run: `make -C 'a b' all`
- C
  Depends-On: alpha, `beta`
  after: none
  priority: high
  repo: site
  image: node
  run:
  ```sh
  set -e
    make "$X"
  ```
  Text that is left.
"""


def test_lines_about_a_task_are_taken_out_of_its_text() -> None:
    a, b, c = planned(SAID).tasks
    assert (a.key, a.text, a.priority, a.labels) == (
        "alpha",
        "A",
        5,
        {"team": "web", "area": "log in"},
    )
    assert a.files == ["src/a.py", "tests/*", "docs/a, b.md", "lib/{x,y}.py"]
    assert (b.key, b.text, b.kind, b.run) == ("beta", "B", "command", "make -C 'a b' all")
    assert b.files == ["src/b.py", "src/c/**"]
    assert [edge.task for edge in b.depends_on] == ["alpha"]
    assert [edge.task for edge in c.depends_on] == ["alpha", "beta"]
    assert (c.priority, c.repo, c.image) == ("high", "site", "node")
    assert c.run == 'set -e\n  make "$X"\n'
    assert c.text == "C\nText that is left."


def test_nothing_is_read_from_code_quotes_or_the_middle_of_a_line() -> None:
    text = "- A\n  ```\n  key: x\n  ```\n  > key: y\n  the key: z\n  `key: q`\n"
    [task] = planned(text).tasks
    assert task.key == "a"
    assert task.text == "A\n```\nkey: x\n```\n> key: y\nthe key: z\n`key: q`"


# By what a task may be named: in the first document, all of them mean B.
NAMES = ["b-key", "#2", "2", "task 2", "Build it: all", "build IT: all.", "build-it-all"]


@pytest.mark.parametrize("name", [*NAMES, "a.md#2"])
def test_a_task_is_named_by_key_number_or_title(name: str) -> None:
    text = f"1. A\n2. **Build it: all**\n   key: b-key\n3. C\n   after: {name}\n"
    edges = {task.key: task.depends_on for task in planned(text).tasks}
    [edge] = edges["c"]
    assert (edge.task, edge.why, edge.because) == ("b-key", "declared", f"{name!r}, a.md line 5")


def test_a_name_reaches_into_other_documents() -> None:
    plan = planned("- A\n  after: Z, b.md#2\n- B\n", "- Y\n- Q\n- Z\n")
    assert {task.key: [edge.task for edge in task.depends_on] for task in plan.tasks} == {
        "a": ["q", "z"],
        "b": [],
        "y": [],
        "q": [],
        "z": [],
    }
    assert plan.waves == [["b", "y", "q", "z"], ["a"]]


def test_a_quoted_title_may_have_commas() -> None:
    text = '- Build, then test\n- C\n  after: "Build, then test"\n'
    assert [task.wave for task in planned(text).tasks] == [1, 2]


def test_a_task_is_named_by_what_its_title_begins_with() -> None:
    text = "- **Add login**: a form\n- Add logout - a button\n- C\n  after: add login, Add logout\n"
    login, logout, last = planned(text).tasks
    assert [edge.task for edge in last.depends_on] == [login.key, logout.key]
    assert (login.key, login.title) == ("add-login-a-form", "Add login: a form")
    assert login.text == "**Add login**: a form"
    # A whole title comes first.
    text = "- Add login: a form\n- Add login\n- C\n  after: Add login\n"
    assert [edge.task for edge in planned(text).tasks[2].depends_on] == ["add-login"]


def test_numbers_are_those_that_are_shown() -> None:
    lists = "- Z\n\n5. A\n5. B\n\nText.\n\n1. C\n   after: #6\n"
    headings = "## Task 10: A\n## Task 20: C\nafter: #10\n"
    for text, first in ((lists, "b"), (headings, "a")):
        edges = {task.key: task.depends_on for task in planned(text).tasks}
        assert [edge.task for edge in edges["c"]] == [first]


def test_what_is_done_is_skipped_and_holds_up_nobody() -> None:
    plan = planned("- [x] A\n  key: nonsense, and more\n  priority: no\n- [ ] B\n  after: #1, A\n")
    assert [(task.key, task.depends_on) for task in plan.tasks] == [("b", [])]
    assert [(done.title, done.document, done.line) for done in plan.skipped] == [("A", "a.md", 1)]
    plan = planned("## [x] Task: A\n## Task: [ ] B\nafter: A\n")
    assert [task.key for task in plan.tasks] == ["b"]
    assert [done.title for done in plan.skipped] == ["A"]


def test_where_a_task_was_read_is_kept() -> None:
    plan = planned("\n- A\n\n- B\n", "---\nx: y\n---\n# C\n")
    assert [(task.document, task.line) for task in plan.tasks] == [
        ("a.md", 2),
        ("a.md", 4),
        ("b.md", 4),
    ]


MENTIONING = """
- Move `src/a.py:12` to `src/b/`, see `https://x.example/a` and `GET /v1/tasks`
  `README.md` `Makefile` `os.path` `--flag/x` `../up.py` `/etc/passwd` `a b/c` `tests/*.py`
  ```
  `src/code.py`
  ```
  files: src/b/
"""


def test_paths_that_a_text_mentions_are_proposed() -> None:
    [task] = planned(MENTIONING).tasks
    assert task.files == ["src/b/**"]
    assert task.proposed_files == ["src/a.py", "README.md", "Makefile", "tests/*.py"]


BOXES = (
    "the boxes below 'A' are part of that task; a heading with only a list below it makes each a "
    "task"
)
WARNINGS: dict[str, tuple[str, list[str]]] = {
    "text outside": (
        "Before.\nMore.\n\n- A\n\nBetween.\n- B\n",
        ["a.md line 1: text outside of tasks was left out, 3 lines of it"],
    ),
    "a code block without an end": (
        "- A\n  ```\n- B\n",
        ["a.md line 2: the code block that begins here never ends"],
    ),
    "a comment without an end": (
        "- A\n<!-- x\n- B\n",
        ["a.md line 2: the comment that begins here never ends"],
    ),
    "no task": ("\n\n", ["a.md has no tasks"]),
    "an empty task": ("- A\n- \n- [ ]\n", ["a.md line 2: a task that says nothing was left out"]),
    "front matter that says something": (
        "---\nkey: x\n---\n- A\n",
        ["a.md: the front matter is not read; say it in the text of a task"],
    ),
    "boxes in a text": (
        "## A\nx\n- [ ] y\n## B\nz\n",
        [f"a.md line 1: {BOXES}"],
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_may_not_be_meant_is_told(case: str) -> None:
    text, expected = WARNINGS[case]
    assert planned(text).warnings[: len(expected)] == expected


def test_a_long_title_is_cut_and_the_text_is_not() -> None:
    words = "word " * 100
    [task] = planned(f"- {words}\n").tasks
    assert len(task.title) == 200
    assert task.text == words.strip()


def _edges(plan: Plan) -> dict[str, Any]:
    return {
        task.key: {edge.task: edge.because for edge in task.depends_on if edge.why == "overlap"}
        for task in plan.tasks
    }


def test_tasks_that_share_files_come_one_after_the_other() -> None:
    text = (
        "- A\n  files: src/a.py, lib\n- B\n  files: src/*.py\n- C\n  files: docs/**\n"
        "- D\n  files: lib/x.c, docs/d.md\n  after: A\n"
    )
    plan = planned(text)
    assert _edges(plan) == {
        "a": {},
        "b": {"a": "overlap on src/a.py"},
        "c": {},
        "d": {"c": "overlap on docs/d.md"},
    }
    assert plan.waves == [["a", "c"], ["b", "d"]]


def test_an_order_that_was_declared_decides_who_is_first() -> None:
    plan = planned("- A\n  files: x\n  after: B\n- B\n  files: x\n")
    assert [task.key for task in plan.tasks] == ["b", "a"]
    assert _edges(plan) == {"a": {}, "b": {}}


def test_each_waits_for_all_that_share_a_file_as_one_in_between_may_be_cancelled() -> None:
    plan = planned(
        "- A\n  files: x\n- B\n  files: x\n- C\n  files: x\n- D\n  after: C\n  files: x\n"
    )
    assert {key: set(edges) for key, edges in _edges(plan).items()} == {
        "a": set(),
        "b": {"a"},
        "c": {"a", "b"},
        # C ran, so what it waited for is over.
        "d": set(),
    }


def test_proposed_files_count_only_when_that_is_asked_for() -> None:
    text = "- Change `src/a.py`\n- Change `src/a.py` too\n  files: b\n- C\n  files: src\n"
    assert [task.wave for task in planned(text).tasks] == [1, 1, 1]
    plan = planned(text, infer_files=True)
    assert [task.wave for task in plan.tasks] == [1, 2, 3]
    assert _edges(plan)["change-src-a-py-too"] == {
        "change-src-a-py": "overlap on src/a.py (proposed)"
    }
