"""An MCP task as it is kept: what was asked, by whom, and what came of it.

Kept in the store as a small record, so it outlives the daemon. Above stands `tasks_extension`,
which runs the calls; nothing here runs anything.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.values import rfc3339
from microvm_orchestrator.store.questions import RecordById, RecordList

if TYPE_CHECKING:
    from microvm_orchestrator.model.access import Principal
    from microvm_orchestrator.store.base import Store

KIND = "mcp-task"
# How long a result waits to be fetched: over a night and a day, not for ever.
TTL = timedelta(days=2)
# Short against the waits tasks are made for, long against what a poll costs.
POLL_INTERVAL_MS = 2000

Status = Literal["working", "input_required", "completed", "failed", "cancelled"]
OPEN: frozenset[Status] = frozenset({"working", "input_required"})


class KeptTask(BaseModel):
    """One MCP task. `result` belongs to `completed`, `error` to `failed`."""

    model_config = ConfigDict(extra="forbid")

    tool: str
    arguments: dict[str, JsonValue]
    owner: str
    created_at: str
    updated_at: str
    status: Status = "working"
    message: str | None = None
    result: dict[str, JsonValue] | None = None
    error: dict[str, JsonValue] | None = None

    @classmethod
    def new(cls, tool: str, arguments: dict[str, JsonValue], owner: str) -> KeptTask:
        now = rfc3339(datetime.now(UTC))
        return cls(tool=tool, arguments=arguments, owner=owner, created_at=now, updated_at=now)

    @property
    def open(self) -> bool:
        return self.status in OPEN

    @property
    def expired(self) -> bool:
        return datetime.fromisoformat(self.created_at) + TTL < datetime.now(UTC)

    def touch(self, status: Status, message: str | None = None) -> None:
        self.status = status
        self.message = message
        self.updated_at = rfc3339(datetime.now(UTC))

    def head(self, task_id: str) -> dict[str, Any]:
        """Show how it stands, as the protocol does in a handle."""
        shown: dict[str, Any] = {
            "taskId": task_id,
            "status": self.status,
            "createdAt": self.created_at,
            "lastUpdatedAt": self.updated_at,
            "ttlMs": int(TTL.total_seconds() * 1000),
            "pollIntervalMs": POLL_INTERVAL_MS,
        }
        if self.message:
            shown["statusMessage"] = self.message
        return shown

    def whole(self, task_id: str) -> dict[str, Any]:
        """Show it with what came of it, but without the requests it may have to the client."""
        shown = self.head(task_id)
        if self.status == "completed":
            shown["result"] = self.result
        if self.status == "failed":
            shown["error"] = self.error
        return shown


def new_task_id() -> str:
    """Make an id nobody can guess, for some clients treat it as a key."""
    return f"mt_{secrets.token_urlsafe(24)}"


@dataclass(frozen=True, slots=True)
class TaskShelf:
    """The kept tasks of every principal."""

    store: Store
    _page: int = field(default=500, repr=False)

    async def save(self, task_id: str, task: KeptTask, by: Principal) -> None:
        body: dict[str, JsonValue] = task.model_dump(mode="json")
        await self.store.save(Record(kind=KIND, id=task_id, body=body), actor(by))

    async def find(self, task_id: str, by: Principal) -> KeptTask | None:
        """Give the task if it is this principal's own and not past its time."""
        record = await self.store.query(RecordById(KIND, task_id), actor(by))
        if record is None:
            return None
        task = KeptTask.model_validate(record.body)
        return task if task.owner == by.name and not task.expired else None

    async def drop_expired(self) -> int:
        """Erase what nobody may fetch any more; says how many went."""
        dropped, cursor = 0, None
        while True:
            page = await self.store.query(RecordList(KIND, limit=self._page, cursor=cursor), SYSTEM)
            for record in page.items:
                if KeptTask.model_validate(record.body).expired:
                    dropped += await self.store.erase(KIND, record.id, SYSTEM)
            if page.cursor is None:
                return dropped
            cursor = page.cursor


def actor(principal: Principal) -> Actor:
    return Actor(
        name=principal.name,
        role=principal.role,
        via="mcp",
        action="mcp_task",
        scope=principal.scope,
    )
