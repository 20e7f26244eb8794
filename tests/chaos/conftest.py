"""What every campaign is given: a seed that is told, so that a failure can be had again."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def seed() -> str:
    """Say by which seed the faults fall; CHAOS_SEED sets another."""
    seed = os.environ.get("CHAOS_SEED", "1")
    print(f"CHAOS_SEED={seed}")
    return seed
