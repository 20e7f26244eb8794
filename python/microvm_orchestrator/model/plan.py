"""Plans: tasks that were read from files, in the order and the waves in which they can be done.

A plan that is given and one that is asked for look the same, so whoever got one can change it and
hand it back. Above sit the readers of task files and the service.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from microvm_orchestrator.model.run import Kind
from microvm_orchestrator.model.values import (
    MAX_TEXT,
    Int,
    Key,
    Labels,
    LabelValue,
    Line,
    Name,
    Priority,
    Text,
)

MAX_DOCUMENTS = 64
# Of all documents together: a request of the usual size holds it, whatever it is made of.
MAX_DOCUMENTS_CHARS = 1 << 20
MAX_TASKS = 1000
MAX_FILES = 200
# Of all tasks together: each is compared with those of the others.
MAX_ALL_FILES = 10_000


def file_pattern(text: str) -> str:
    """Give a path or glob of a work tree as it is compared with others.

    Raises: ValueError when it leads out of the tree.
    """
    if text.startswith(("/", "~")):
        raise ValueError("is no path within the repository")
    if "\\" in text:
        raise ValueError("is written with / between its parts")
    parts = [part for part in text.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise ValueError("leads out of the repository")
    if text.endswith(("/", ".")) or not parts:
        parts.append("**")
    return "/".join(parts)


FilePattern = Annotated[
    LabelValue, Field(min_length=1, max_length=200), AfterValidator(file_pattern)
]
FilePatterns = Annotated[list[FilePattern], Field(max_length=MAX_FILES)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Document(_Part):
    """A task file."""

    name: Annotated[LabelValue, Field(min_length=1)] = Field(
        description="what messages call it, as TODO.md; nothing is opened by this name"
    )
    text: Annotated[str, Field(max_length=MAX_TEXT)] = Field(description="Markdown")


class Why(StrEnum):
    """Why a task comes after another."""

    DECLARED = "declared"
    OVERLAP = "overlap"


class PlanEdge(_Part):
    """A task that comes first."""

    task: Key
    why: Why = Field(
        default=Why.DECLARED,
        description="`declared`: somebody said so, and it must succeed. `overlap`: both touch the "
        "same files, so it must be over; found anew each time, and not taken from what is given",
    )
    because: Line = Field(default="", description="where it was said, or the files")


class _TaskFields(_Part):
    title: Line = ""
    text: Text = Field(default="", description="what to do, for whoever does it")
    files: FilePatterns = Field(
        default=[],
        description="what it changes: paths and globs of the repository; what may be a folder "
        "stands for all that is beneath it. Tasks that share a file never run at the same time",
    )
    proposed_files: FilePatterns = Field(
        default=[], description="paths that its text mentions; they count with `infer_files`"
    )
    priority: Priority | None = None
    labels: Labels = {}
    kind: Kind | None = Field(
        default=None,
        description="by default `script` with `run`, else `agent` with a repo, else `manual`",
    )
    run: Text | None = Field(
        default=None, description="the text of a script, or a command with its words"
    )
    repo: Name | None = Field(default=None, description="the alias of a registered repository")
    image: Line | None = None
    document: Line | None = Field(default=None, description="where it was read")
    line: Int | None = None


class PlanTask(_TaskFields):
    """A task to plan."""

    key: Key | None = Field(default=None, description="by default made of the title")
    depends_on: Annotated[list[Key | PlanEdge], Field(max_length=MAX_TASKS)] = Field(
        default=[], description="tasks that come first: each by key, by #number or by title"
    )
    wave: Int | None = Field(
        default=None, description="found anew each time, and not taken from what is given"
    )


class PlannedTask(_TaskFields):
    """A task with its place in a plan."""

    key: Key
    depends_on: list[PlanEdge] = Field(description="by key")
    wave: Int = Field(description="counted from 1")


class DoneTask(_Part):
    """A task that was read and is not part of the plan: its box is ticked."""

    title: Line
    document: Line
    line: Int


class Plan(_Part):
    """Tasks in an order in which one worker could do them, and in waves for many."""

    tasks: list[PlannedTask]
    waves: list[list[Key]] = Field(
        description="each needs only what is in the ones before it; those of one wave share no file"
    )
    skipped: list[DoneTask] = Field(description="done already")
    warnings: list[str] = Field(description="what was left out, or may not be meant")
