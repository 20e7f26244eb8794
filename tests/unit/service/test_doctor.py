"""What `doctor` tells of a service and its host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from calling import House, house
from machines import fake_program, publish_no_image
from microvm_orchestrator.machine.tap import within
from microvm_orchestrator.network import queues
from microvm_orchestrator.slots import Need
from networking import own_namespace, why_no_kernel

if TYPE_CHECKING:
    from pathlib import Path


async def examine(here: House) -> tuple[bool, dict[str, dict[str, Any]]]:
    answer = await here.ask("doctor_run")
    return answer["healthy"], {check["name"]: check for check in answer["checks"]}


async def test_what_a_host_lacks_is_a_warning_and_without_a_qemu_it_is_not_well(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, machines={"qemu": "no-such-qemu"}) as here:
        healthy, checks = await examine(here)
    assert (healthy, checks["qemu"]["state"]) == (False, "failed")
    assert set(checks) == {
        *("store", "disk", "clock", "images", "slots", "pools", "faults"),
        *("qemu", "kvm", "memory", "limits"),
        *("tun", "vhost", "netem", "nft", "libvirt", "nix"),
    }
    assert all(check["meaning"] and check["found"] for check in checks.values())


async def test_images_are_told_none_whole_or_damaged(tmp_path: Path) -> None:
    async with house(tmp_path, machines={"qemu": str(fake_program(tmp_path))}) as here:
        healthy, checks = await examine(here)
        assert (healthy, checks["images"]["state"]) == (True, "warning")
        image = publish_no_image(here.service.host.images, "box")
        _, checks = await examine(here)
        assert (checks["images"]["state"], checks["images"]["found"]) == ("ok", "box")
        manifest = image.folder / "manifest.json"
        manifest.chmod(0o644)
        manifest.write_bytes(manifest.read_bytes() + b" ")
        healthy, checks = await examine(here)
        assert (healthy, checks["images"]["state"]) == (False, "failed")
        assert image.digest in checks["images"]["found"]


async def test_slots_are_told_with_who_waits(tmp_path: Path) -> None:
    limits = {"count": 4, "memory_mib": 1000, "vcpus": 8}
    async with house(tmp_path, machines={**limits, "qemu": str(fake_program(tmp_path))}) as here:
        here.service.host.slots.keep("m_1", Need(100, 2))
        _, checks = await examine(here)
    assert checks["slots"]["state"] == "ok"
    assert checks["slots"]["found"] == (
        "1 of 4 are busy, with 100 of 1000 MiB and 2 of 8 processors; 0 wait"
    )


async def test_a_pool_that_cannot_be_kept_is_a_warning(tmp_path: Path) -> None:
    machines: dict[str, object] = {"qemu": str(fake_program(tmp_path)), "warm": {"nothing": 1}}
    async with house(tmp_path, machines=machines) as here:
        healthy, checks = await examine(here)
    assert (healthy, checks["pools"]["state"]) == (True, "warning")
    assert checks["pools"]["found"].startswith("nothing: ")


async def test_what_faults_can_do_here_is_told_as_it_was_tried_out(tmp_path: Path) -> None:
    async with house(tmp_path, machines={"qemu": str(fake_program(tmp_path))}) as here:
        _, checks = await examine(here)
    assert checks["faults"]["state"] == "ok"
    assert checks["faults"]["found"] == (
        "userspace networks: bursts, corrupt, cut, delay, dns, duplicate, jitter, loss, mtu, rate,"
        " reorder"
    )


@pytest.mark.skipif(bool(why_no_kernel()), reason=str(why_no_kernel()))
async def test_what_a_kernel_lacks_for_faults_is_a_warning(tmp_path: Path) -> None:
    qemu: dict[str, object] = {"qemu": str(fake_program(tmp_path))}
    with own_namespace() as netns:
        networks: dict[str, object] = {"kind": "kernel", "netns": str(netns)}
        async with house(tmp_path, machines=qemu, networks=networks) as here:
            healthy, checks = await examine(here)
        lacks = within(netns, lambda: queues.lacks("netem"))
    assert healthy
    assert checks["faults"]["state"] == ("warning" if lacks else "ok")
    assert checks["faults"]["found"].startswith("kernel networks: ")
    assert ("no netem" in checks["faults"]["found"]) == lacks
