from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from machines import fake_rig, publish_no_image
from microvm_orchestrator import errors
from microvm_orchestrator.conversations.fit import look_for_program, refuse_unfit
from microvm_orchestrator.images.manifest import RunnerManifest
from microvm_orchestrator.images.programs import PROGRAMS
from microvm_orchestrator.images.store import ImageStore, RunnerImage
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


async def test_an_image_of_others_is_looked_at_in_a_machine_of_it(tmp_path: Path) -> None:
    # Commands of the fake guest run on this host.
    if shutil.which("opencode") is not None:
        pytest.skip("this host has opencode itself")
    nothing = RunnerManifest(
        architecture="amd64",
        hypervisor="qemu",
        path="/run",
        runner="0" * 64,
        memory_mib=None,
        vcpus=None,
    )
    image = RunnerImage("0" * 64, tmp_path, nothing, ("theirs",))
    rig = fake_rig(tmp_path)
    who = Character(driver="opencode")
    refuse_unfit(who, None, image)
    async with rig.open() as qemu:
        machine = await qemu.start(rig.spec())
        with pytest.raises(errors.NotOffered, match="the image theirs has no opencode"):
            await look_for_program(who, image, machine)
        await qemu.remove(machine.machine_id)
