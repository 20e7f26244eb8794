from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mcp_stage import Stage, front_on, stage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from microvm_orchestrator.mcp_server.server import McpFrontEnd


@pytest.fixture(name="stage")
def fresh_stage() -> Stage:
    for name, value in vars(Stage()).items():
        setattr(stage, name, value)
    return stage


@pytest.fixture
async def front(tmp_path: Path, stage: Stage) -> AsyncGenerator[McpFrontEnd]:  # noqa: ARG001 - made fresh
    async with front_on(tmp_path) as front:
        yield front
