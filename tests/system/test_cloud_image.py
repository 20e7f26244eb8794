"""A disk of somebody else's that boots by its own loader, and is told by cloud-init who it is."""

from __future__ import annotations

import anyio
import pytest

import cloud_image
import libvirtd
from machines import built_image, new_machine_id, removed_in_the_end, running_libvirt_rig, sh
from microvm_orchestrator.clusters.quiet import held_quiet
from microvm_orchestrator.machine.base import Accel, Disk, DiskFormat, Link, MachineSpec, Qcow2
from microvm_orchestrator.model.cluster import Quiesced
from microvm_orchestrator.runner import Ssh

# Python starts some dozen times while cloud-init is at work, which takes a minute under emulation
# on a host that does nothing else.
BOOT_S = 900.0
STATUS = """
cloud-init status --long --wait
grep -E 'WARN|ERROR|Traceback' /var/log/cloud-init.log
true
"""


async def test_a_cloud_image_boots_by_its_own_loader_and_is_who_it_was_told_to_be(
    whole: bool,
) -> None:
    if not whole:
        pytest.skip("a whole Debian takes minutes to be built and to boot")
    if why := libvirtd.why_not() or cloud_image.why_not():
        pytest.skip(why)
    disk = cloud_image.cloud_image()
    with running_libvirt_rig(await built_image()) as rig:
        link = Link("52:54:00:07:00:01", "10.7.0.1/24", ipv6="fd07::1/64")
        boot = Qcow2(
            "cloud",
            Disk("system", disk, DiskFormat.QCOW2, read_only=False),
            Ssh("root"),
            cloud_init=True,
        )
        spec = MachineSpec(
            new_machine_id(),
            boot,
            memory_mib=512,
            links=(link,),
            hostname="node-one",
            accel=Accel.TCG,
            boot_timeout_s=BOOT_S,
        )
        with anyio.fail_after(2 * BOOT_S):
            async with rig.open_any() as hypervisor, removed_in_the_end(hypervisor):
                began = anyio.current_time()
                machine = await hypervisor.start(spec)
                print(f"from the start to SSH: {anyio.current_time() - began:.1f} s")
                assert await sh(machine, "id -un; hostname") == "root\nnode-one\n"
                # SSH may be there before the last networks are.
                told = await sh(machine, STATUS)
                assert "status: done" in told, told
                addresses = await sh(machine, "ip address show eth0")
                assert "10.7.0.1/24" in addresses
                assert "fd07::1/64" in addresses
                # All of its disk is held, and so is who answers there, whom we are to let go.
                async with held_quiet({"node-one": machine.shell}) as quiet:
                    assert quiet == {"node-one": Quiesced.FROZEN}
                assert await sh(machine, "touch ~/thawed; sync; echo on") == "on\n"
                saved = await machine.save(f"{machine.machine_id}-s")
                await sh(machine, "echo late >/tmp/late")
                await machine.kill()
                again = await hypervisor.clone(saved, spec)
                assert await sh(again, "test -e /tmp/late || hostname") == "node-one\n"
                await hypervisor.forget(saved.snapshot_id)
                await again.stop(BOOT_S)
                assert again.reason == "it was stopped, as asked"
