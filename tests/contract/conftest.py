"""One suite for every engine of the store. A new engine adds a line to `storing.ENGINES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from storing import ENGINES, HandClock, SqliteEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from microvm_orchestrator.store.base import Store


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> SqliteEngine:
    return ENGINES[request.param](tmp_path, clock)


@pytest.fixture
async def store(engine: SqliteEngine) -> AsyncIterator[Store]:
    """An open store, in which nothing is wrong when the test is over."""
    store = engine.store()
    async with store.opened():
        yield store
        assert (await store.check()).problems == ()
