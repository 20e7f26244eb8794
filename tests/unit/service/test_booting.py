"""How long a machine may take to boot, as the settings say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calling import house
from machines import LONG_S, fake_program, publish_no_image

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_guest_that_never_answers_has_failed_after_the_time_that_was_set(
    tmp_path: Path,
) -> None:
    machines: dict[str, object] = {"qemu": str(fake_program(tmp_path)), "boot_timeout_s": 1.5}
    async with house(tmp_path, machines=machines) as here:
        publish_no_image(here.service.host.images, "mute", "fake.silent")
        await here.ask("machine_define", name="box", image="mute")
        ended = await here.ask("machine_start", machine="box", wait_s=LONG_S)
        assert ended["error"]["code"] == "machine-boot-failed"
        assert "it was not ready within 1.5 s" in ended["error"]["message"]
        assert (await here.ask("machine_get", machine="box"))["state"] == "crashed"
        await here.ask("machine_delete", machine="box")
