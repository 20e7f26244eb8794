from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from claude_image import Model, claude_image, scripted_model
from system.agents import let_in
from system.living import Stage, living
from system.world import World, world_in

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Give a module one daemon, on which whole tables are tried out."""
    with world_in(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """Give a module a scripted model, and an image with the real Claude Code."""
    anyio.run(claude_image)
    with scripted_model() as model:
        yield model


@pytest.fixture(scope="module")
def stage(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Give a module a daemon with machines in which the model can be asked."""
    with living(tmp_path_factory.mktemp("thinking") / "s", egress=model.settings) as stage:
        let_in(stage)
        yield stage
