"""Disks with whole systems on them, as images: taken in, looked at, and asked of a libvirt."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import anyio
import pytest

from calling import House, house
from machines import LONG_S
from microvm_orchestrator import errors
from microvm_orchestrator.machine.qemu import qcow2

MIB = 1 << 20


async def add(kept: House, path: Path, **more: Any) -> dict[str, Any]:
    asked = {"name": "cloud", "disk": str(path), "wait_s": LONG_S}
    return await kept.ask("image_add", **asked, **more)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "debian.qcow2"
    qcow2.create(path, 64 * MIB)
    return path


async def test_a_disk_is_an_image_of_its_own_whatever_becomes_of_the_file(
    tmp_path: Path, disk: Path
) -> None:
    async with house(tmp_path) as kept:
        added = await add(kept, disk, ssh_user="debian")
        assert added["state"] == "succeeded", added
        image = added["result"]
        assert (image["kind"], image["cloud_init"], image["ssh_user"]) == ("qcow2", True, "debian")
        assert image["ssh_authorized_key"].startswith("ssh-ed25519 ")
        await anyio.Path(disk).unlink()
        assert (await kept.ask("image_verify", image="cloud"))["whole"]
        assert (await kept.ask("image_get", image="cloud")) == image


async def test_a_guest_with_our_agent_needs_no_login_and_no_cloud_init(
    tmp_path: Path, disk: Path
) -> None:
    async with house(tmp_path) as kept:
        image = (await add(kept, disk))["result"]
        assert (image["ssh_user"], image["cloud_init"]) == (None, False)


async def test_a_file_that_wants_another_file_is_no_disk(tmp_path: Path, disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack(">QI", 512, 11))  # where a name stands, and how long it is
        file.seek(512)
        file.write(b"/etc/passwd")
    async with house(tmp_path) as kept:
        refused = await add(kept, disk)
        assert refused["error"]["code"] == "invalid-input"
        assert "wants another file" in refused["error"]["message"]
        assert (await kept.ask("image_list"))["items"] == []


async def test_what_is_no_disk_is_refused_with_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no disk")
    async with house(tmp_path) as kept:
        for path, why in ((tmp_path / "text", "is no qcow2"), (tmp_path, "is no file")):
            refused = await add(kept, path)
            assert refused["error"]["code"] == "invalid-input"
            assert why in refused["error"]["message"]
        with pytest.raises(errors.InvalidInput, match="of a runner or of a disk"):
            await add(kept, tmp_path, runner="/a/runner")
        with pytest.raises(errors.InvalidInput, match="of a runner or of a disk"):
            await kept.ask("image_add", name="nothing")


async def test_a_machine_of_a_disk_is_asked_of_libvirt_and_nothing_is_left_where_there_is_none(
    tmp_path: Path, disk: Path
) -> None:
    nowhere: dict[str, object] = {"uri": f"qemu+unix:///system?socket={tmp_path}/nowhere"}
    # Sockets have short names, and pytest's folders long ones.
    with tempfile.TemporaryDirectory(prefix="di-") as folder:
        async with house(Path(folder), libvirt=nowhere) as kept:
            await _ask_where_there_is_none(kept, disk)


async def _ask_where_there_is_none(kept: House, disk: Path) -> None:
    await add(kept, disk)
    await kept.ask("machine_define", name="box", image="cloud")
    failed = await kept.ask("machine_start", machine="box", wait_s=LONG_S)
    assert failed["error"]["code"] == "unavailable", failed
    assert "does not answer" in failed["error"]["message"]
    told = await kept.ask("machine_get", machine="box")
    assert told["state"] == "crashed"
    checks = {each["name"]: each for each in (await kept.ask("doctor_run"))["checks"]}
    assert checks["libvirt"]["state"] == "warning"
    assert "does not answer" in checks["libvirt"]["found"]
