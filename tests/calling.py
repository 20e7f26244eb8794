"""A service on a real store, called without a front end, for the tests of the service."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from machines import LONG_S, know_host
from microvm_orchestrator import config
from microvm_orchestrator.events import Journal
from microvm_orchestrator.host import open_host
from microvm_orchestrator.model.access import Principal, Role
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.service.service import Service
from microvm_orchestrator.service.table import BY_NAME
from microvm_orchestrator.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from microvm_orchestrator.store.base import Store

ADMIN = Principal("uid:0", Role.ADMIN)
OPERATOR = Principal("operator", Role.OPERATOR)
VIEWER = Principal("viewer", Role.VIEWER)

# Longer than anything here takes on a busy machine; only a test that fails waits so long.
PATIENCE_S = 20


async def silent(done: float, total: float | None, message: str) -> None:
    del done, total, message


@dataclass(frozen=True)
class House:
    service: Service
    store: Store

    async def ask(self, call: str, /, **arguments: Any) -> dict[str, Any]:
        """Make a call, `by` somebody, and give its answer as a client would read it."""
        principal = arguments.pop("by", ADMIN)
        caller = Caller(principal=principal, via="test", progress=silent)
        answer = await self.service.invoke(caller, call, arguments)
        return answer.model_dump(mode="json")

    async def filled(self) -> None:
        """Wait until as many machines stand ready as are wanted of the first kind."""
        warm = self.service.host.warm
        with anyio.fail_after(LONG_S):
            while (pool := warm.kinds[0].pool) is None:
                await warm.news()
            await pool.filled()

    async def go_on(self) -> None:
        """Let the daemon do for a while what nothing tells the end of."""
        for _ in range(10):
            await self.ask("agent_list")

    async def until(self, true: Callable[[], Awaitable[bool]]) -> None:
        """Wait for the store to come to a state."""
        with anyio.fail_after(PATIENCE_S):
            async with self.store.hints() as changes:
                if await true():
                    return
                async for _ in changes:
                    if await true():
                        return


@asynccontextmanager
async def house(
    tmp_path: Path,
    over: Callable[[Store], Store] = lambda store: store,
    **sections: dict[str, object],
) -> AsyncGenerator[House]:
    """Keep a service until the block ends; `sections` are those of the settings.

    It knows its store by what `over` makes of it.
    """
    settings = config.Settings.model_validate(
        {"state_dir": tmp_path, "socket": {"path": tmp_path / "socket"}, **sections}
    )
    await know_host(tmp_path)
    real = SqliteStore(tmp_path / "store.db")
    store = over(real)
    async with (
        real.opened(),
        open_host(settings, store) as host,
        anyio.create_task_group() as group,
    ):
        journal = Journal(store)
        group.start_soon(journal.pump)
        yield House(Service(store, journal, host, settings, BY_NAME), store)
        group.cancel_scope.cancel()
