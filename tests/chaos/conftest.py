"""What every campaign is given: a seed that is told, so that a failure can be had again; disks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from chaos.disks import why_none

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def seed() -> str:
    """Say by which seed the faults fall; CHAOS_SEED sets another."""
    seed = os.environ.get("CHAOS_SEED", "1")
    print(f"CHAOS_SEED={seed}")
    return seed


@pytest.fixture(scope="session")
def no_disks(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    return why_none(tmp_path_factory.mktemp("disks"))


@pytest.fixture
def disks(tmp_path: Path, no_disks: str | None) -> Path:
    """Give a folder in which disks of our own can be made and mounted."""
    if no_disks is not None:
        pytest.skip(f"NOT RUN HERE: {no_disks}")
    return tmp_path
