from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from machines import publish_no_image
from microvm_orchestrator import errors
from microvm_orchestrator.conversations.fit import refuse_unfit
from microvm_orchestrator.images.programs import PROGRAMS
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.model.agent import Character

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.images.store import Image


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def image_with(images: ImageStore, *programs: str) -> Image:
    return publish_no_image(images, "box", programs=[PROGRAMS[name] for name in programs])


def refuse(image: Image, **who: Any) -> None:
    refuse_unfit(Character.model_validate(who), None, image)


@pytest.mark.parametrize("driver", PROGRAMS)
def test_an_image_is_refused_that_has_other_programs_than_the_agent_s(
    images: ImageStore, driver: str
) -> None:
    others = [name for name in PROGRAMS if name != driver]
    with pytest.raises(errors.NotOffered) as caught:
        refuse(image_with(images, *others), driver=driver)
    assert caught.value.message == (
        f"the image box has no {PROGRAMS[driver].title}: "
        f"`image build --name {driver} --{driver} latest` makes one that has"
    )
    refuse(image_with(images, driver), driver=driver)


@pytest.mark.parametrize(
    ("who", "said"),
    [
        ({"driver": "codex", "max_turns": 3}, "codex has no limit of turns"),
        ({"driver": "opencode", "max_turns": 3}, "opencode has no limit of turns"),
        ({"mcp_servers": {"a": {"command": "x", "url": "y"}}}, "the MCP server 'a'"),
        ({"mcp_servers": {"orchestrator": {"command": "x"}}}, "of its own"),
    ],
)
def test_what_a_program_could_not_be_told_is_refused_before_it_is_spawned(
    images: ImageStore, who: dict[str, Any], said: str
) -> None:
    with pytest.raises((errors.NotOffered, errors.InvalidInput), match=said):
        refuse(image_with(images, *PROGRAMS), **who)
