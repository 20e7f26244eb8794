"""A guest with nothing of ours in it, run by a real libvirtd: told who it is, and reached by SSH.

Kernel and root are those of a guest built here with Debian's openssh-server. Its first program is
another one, which does as cloud-init does with the disk that it finds: it believes what stands
there about its keys, its name and its networks, and nothing else.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

import libvirtd
from machines import LONG_S, Rig, new_machine_id, removed_in_the_end, running_libvirt_rig, sh
from microvm_orchestrator import errors, proc
from microvm_orchestrator.machine.base import Accel, Boot, Link, MachineSpec, Qcow2
from microvm_orchestrator.machine.ssh import our_key_path
from microvm_orchestrator.machine.ssh.keys import make_key
from microvm_orchestrator.runner import Ssh
from system.test_ssh_image import BEGINS, CONFIG, first_root, parts

INIT = (
    BEGINS
    + """
modprobe virtio_net
python3 /foreign/seed || echo "seed: failed" >/dev/console
exec /usr/sbin/sshd -D -e -f /foreign/config 2>>/dev/console
"""
)
# The root folder of an ISO 9660 is at sector 20 of those that are written here.
SEED = """
import json, os, subprocess
from pathlib import Path
disk = Path("/dev/vdb").read_bytes()
assert disk[16 * 2048 + 40:].startswith(b"cidata ")
files, at = {}, 20 * 2048
while length := disk[at]:
    entry = disk[at:at + length]
    begin, size = (int.from_bytes(entry[n:n + 4], "little") for n in (2, 10))
    files[entry[33:33 + entry[32]].decode()] = disk[begin * 2048:][:size]
    at += length
user = json.loads(files["USER-DATA;1"].removeprefix(b"#cloud-config\\n"))
assert json.loads(files["META-DATA;1"])["local-hostname"] == user["hostname"]
[login] = user["users"]
assert login["name"] == "root"
Path("/root", ".ssh/authorized_keys").write_text("\\n".join(login["ssh_authorized_keys"]) + "\\n")
host = Path("/foreign/host")
host.write_text(user["ssh_keys"]["ed25519_private"])
host.chmod(0o600)
Path("/proc/sys/kernel/hostname").write_text(user["hostname"])
cards = {(p / "address").read_text().strip(): p.name for p in Path("/sys/class/net").iterdir()}
for card in json.loads(files["NETWORK-CONFIG;1"])["ethernets"].values():
    name = cards[card["match"]["macaddress"]]
    for address in card.get("addresses", []) + ["10.0.2.15/24"] * card["dhcp4"]:
        subprocess.run(["ip", "address", "add", address, "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
"""


def foreign_in(folder: Path) -> Boot:
    """Make what a guest boots that has nothing of ours but what cloud-init is told."""
    boot, _ = anyio.run(parts, folder)
    files = {
        "init": (INIT.encode(), 0o755),
        "seed": (SEED.encode(), 0o644),
        "config": (CONFIG.encode(), 0o644),
    }
    (folder / "initrd").write_bytes(first_root(boot, files))
    return replace(boot, initrd=folder / "initrd")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    return foreign_in(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def rig(image: Boot) -> Generator[Rig]:
    if why := libvirtd.why_not():
        pytest.skip(why)
    with running_libvirt_rig(image) as rig:
        yield rig


def wanted(image: Boot, **ssh: str) -> MachineSpec:
    machine_id = new_machine_id()
    boot = Qcow2(
        image.digest,
        replace(image.disks[0], read_only=False),
        Ssh("root", **ssh),
        cloud_init=True,
        kernel=image.kernel,
        initrd=image.initrd,
        cmdline=image.cmdline,
    )
    links = (Link("52:54:00:07:00:01", "10.7.0.1/24", ipv6="fd07::1/64"),)
    return MachineSpec(
        machine_id,
        boot,
        links=links,
        hostname="node-one",
        accel=Accel.TCG,
        boot_timeout_s=LONG_S,
    )


async def test_a_guest_is_told_by_a_disk_who_it_is_and_reached_by_the_host_key_it_was_given(
    rig: Rig, image: Boot
) -> None:
    with anyio.fail_after(LONG_S):
        async with rig.open_any() as hypervisor, removed_in_the_end(hypervisor):
            machine = await hypervisor.start(wanted(image))
            assert await sh(machine, "hostname") == "node-one\n"
            # As somebody does who was told where the key lies.
            port, key = str(machine.ssh_port), str(our_key_path(rig.state_dir))
            options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
            words = ["ssh", "-i", key, "-p", port, *options, "root@127.0.0.1", "hostname"]
            ran = await proc.run(words, timeout_s=LONG_S)
            assert ran.stdout == b"node-one\n"
            addresses = await sh(machine, "ip address")
            assert "10.7.0.1/24" in addresses
            assert "fd07::1/64" in addresses
            # Its own networks may be gone; the way in is none of them.
            await sh(machine, "ip link set eth0 down; echo one >/run/notes")
            async with rig.open_any() as another:
                adopted = await another.adopt(machine.machine_id)
                await adopted.reached()
                assert await sh(adopted, "hostname") == "node-one\n"
            saved = await machine.save(f"{machine.machine_id}-s")
            await machine.kill()
            again = await hypervisor.clone(saved, machine.spec)
            assert await sh(again, "cat /run/notes") == "one\n"
            await hypervisor.forget(saved.snapshot_id)
            await again.stop(LONG_S)
            assert again.reason == "it was stopped, as asked"


async def test_a_guest_with_another_host_key_than_it_should_have_is_not_spoken_to(
    rig: Rig, image: Boot
) -> None:
    with anyio.fail_after(LONG_S):
        async with rig.open_any() as hypervisor, removed_in_the_end(hypervisor):
            other = " ".join(make_key("other").public.split()[:2])
            with pytest.raises(errors.MachineBootFailed, match="host key"):
                await hypervisor.start(wanted(image, host_key=other))
