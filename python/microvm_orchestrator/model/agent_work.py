"""What an agent works on: a checkout of a repository in its machine, and where its commits go.

Everything that is said of commits is what our own copy of the repository knows of them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.run import Branch, ChangedFile, Commit, Merge, MergeOutcome
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import Flag, Name, Text


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Assignment(_Part):
    """What an agent is to work on."""

    repo: Name | None = Field(
        default=None, description="the alias of a registered repository, laid out in its machine"
    )
    base: Branch | None = Field(
        default=None,
        description="the branch, tag or commit it starts from; by default its own branch where "
        "that is there already, else the repo's",
    )
    into: Branch | None = Field(
        default=None, description="the branch its commits are merged into; by default the base"
    )
    branch: Branch | None = Field(
        default=None,
        description="the branch of its own, where all it commits comes; by default agents/NAME",
    )
    merge: Merge | None = Field(
        default=None,
        description="auto and squash: merged after each turn; branch: on its own branch only; "
        "review: merged when `agent_collect` says so; manual: kept as refs/agents/ID",
    )
    check: Text | None = Field(
        default=None,
        description="a shell text that what was merged must pass before the branch moves; as the "
        "repo has it, and empty for none",
    )
    rest: Literal["commit", "drop"] | None = Field(
        default=None,
        description="what becomes of changes without a commit when it ends: by default a last "
        "commit on its own branch, which is not merged",
    )


class AgentWork(_Part):
    """Where an agent works on a repository, and how far what it did has come."""

    asked: Assignment
    repo: str = Field(description="the alias, as that was when it was spawned")
    repo_id: str
    base: str | None = Field(default=None, description="the commit it started from")
    into: str | None = Field(default=None, description="the branch its commits are merged into")
    branch: str | None = Field(default=None, description="the branch of its own")
    head: str | None = Field(default=None, description="its last commit that has come here")
    on_branch: str | None = Field(default=None, description="the last that its own branch has")
    merged: str | None = Field(default=None, description="the last that was merged")
    left: str | None = Field(
        default=None, description="a commit of ours with what it had not committed when it ended"
    )
    outcome: MergeOutcome = Field(
        default=MergeOutcome(), description="what became of the last commits that came"
    )
    unsure: Flag = Field(
        default=False, description="whether it may have done more than is known here"
    )
    uncommitted: Flag = Field(
        default=False, description="whether it had changes without a commit when last looked at"
    )
    message_id: str | None = Field(default=None, description="the last message that it heard")
    since: str | None = Field(default=None, description="where it was when it began to hear that")
    check_machine_id: str | None = Field(
        default=None, description="the machine in which what was merged is checked"
    )


class Brought(_Part):
    """What an agent committed while it heard a message, and what became of it."""

    head: str | None = Field(description="its last commit that has come here")
    commits: list[Commit] = []
    files_changed: list[ChangedFile] = []
    # Of the two lists above, the whole.
    commit_count: int = 0
    file_count: int = 0
    merge: MergeOutcome = MergeOutcome()
    uncommitted: bool = Field(description="whether it has changes without a commit")
    error: TaskError | None = Field(
        default=None, description="why what it did could not come; it is still in its machine"
    )
