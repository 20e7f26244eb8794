from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from system.world import World, world_in

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Give a module one daemon, on which whole tables are tried out."""
    with world_in(tmp_path_factory.mktemp("world")) as world:
        yield world
