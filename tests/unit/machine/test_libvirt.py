"""What libvirt is told, and what is made of what it says."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import anyio
import pytest

import libvirtd
from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Accel, Disk, Limits, Link, MachineSpec, Qcow2, Tap
from microvm_orchestrator.machine.libvirt import domain, iso9660, saving, seed
from microvm_orchestrator.machine.libvirt.connection import open_connection
from microvm_orchestrator.machine.libvirt.domain import Files
from microvm_orchestrator.machine.ssh import KeyPair

if TYPE_CHECKING:
    from collections.abc import Generator

UUID = "9f4c1a7e-0000-4000-8000-000000000001"
LONG_S = 60.0


def spec(**more: object) -> MachineSpec:
    boot = Qcow2("none", Disk("root", Path("/images/root.qcow2"), read_only=False))
    return MachineSpec("m-1", boot, **more)  # type: ignore[arg-type]  # named as the fields are


def files(wanted: MachineSpec) -> Files:
    folder = Path("/machines/m-1")
    return Files(
        disks=[[folder / f"{disk.serial}.1", Path("/below")] for disk in wanted.all_disks],
        console=folder / "console",
        terminal=folder / "tty",
        agent=folder / "ctl",
        links=[folder / f"net{number}" for number in range(len(wanted.links))],
        seed=folder / "seed.iso",
    )


def told(wanted: MachineSpec, accel: Accel = Accel.TCG, **more: object) -> ET.Element:
    text = domain.write(wanted, accel, UUID, "/bin/qemu", files(wanted), 1000, **more)  # type: ignore[arg-type]  # named as the parameters are
    return ET.fromstring(text)  # noqa: S314 # we have just written it


def found(document: ET.Element, path: str) -> ET.Element:
    element = document.find(path)
    assert element is not None, path
    return element


def arguments(document: ET.Element) -> list[str]:
    return [each.attrib["value"] for each in document.iterfind(".//{*}arg")]


def test_a_machine_is_of_the_kind_that_runs_here() -> None:
    assert told(spec()).attrib["type"] == "qemu"
    assert found(told(spec()), "features/tcg/tb-cache").text == "64"
    by_kvm = told(spec(), Accel.KVM)
    assert by_kvm.attrib["type"] == "kvm"
    assert by_kvm.find("features/tcg") is None


def test_a_name_is_only_ever_a_name() -> None:
    odd = Qcow2("none", Disk("a'<b>&amp;\"", Path("/images/<&>.qcow2"), read_only=False))
    document = told(MachineSpec("m-1", odd))
    assert found(document, "devices/disk/serial").text == "a'<b>&amp;\""


def test_all_that_lies_under_a_disk_is_named_and_nothing_more() -> None:
    disk = found(told(spec()), "devices/disk")
    assert found(disk, "source").attrib["file"] == "/machines/m-1/root.1"
    below = found(disk, "backingStore")
    assert found(below, "source").attrib["file"] == "/below"
    assert list(found(below, "backingStore")) == []


def test_the_console_is_kept_over_a_restart() -> None:
    log = found(told(spec()), "devices/serial/log")
    assert log.attrib == {"file": "/machines/m-1/console", "append": "on"}


def test_a_link_is_a_tap_by_its_name_or_a_socket_that_qemu_listens_at() -> None:
    links = (Link("52:54:00:00:00:01"), Link("52:54:00:00:00:02", tap=Tap("t-1")))
    document = told(spec(links=links))
    tap = found(document, "devices/interface/target")
    assert tap.attrib == {"dev": "t-1", "managed": "no"}
    netdev, card = arguments(document)[1], arguments(document)[3]
    assert netdev == "stream,id=ours0,server=on,addr.type=unix,addr.path=/machines/m-1/net0"
    assert "mac=52:54:00:00:00:01" in card
    slots = found(document, "devices/interface/address").attrib["slot"], card.partition("addr=")[2]
    assert slots == ("0x11", "0x10,romfile=")


def test_the_way_to_its_ssh_server_leads_to_this_host_alone() -> None:
    document = told(spec(), management=domain.Management("52:54:00:00:00:09", 2200))
    assert arguments(document)[1] == (
        "user,id=management,restrict=on,hostfwd=tcp:127.0.0.1:2200-:22"
    )


def test_limits_on_disks_are_libvirts_to_keep() -> None:
    tune = found(told(spec(limits=Limits(disk_bytes=1000))), "devices/disk/iotune")
    assert [(each.tag, each.text) for each in tune] == [("total_bytes_sec", "1000")]


def test_a_disk_for_cloud_init_is_found_by_its_label_and_has_what_it_wants(tmp_path: Path) -> None:
    keys = KeyPair(b"private", "ssh-ed25519 host")
    links = (Link("52:54:00:00:00:01", "10.0.0.2/24", "10.0.0.1", "fd00::2/64"),)
    written = seed.write(spec(links=links), "root", keys, "ssh-ed25519 client", "52:54:00:00:00:09")
    path = tmp_path / "seed.iso"
    path.write_bytes(written)
    label = subprocess.run(
        ["blkid", "--probe", "--output", "export", path], capture_output=True, check=True, text=True
    ).stdout
    assert "LABEL=cidata\n" in label
    assert "TYPE=iso9660\n" in label
    for name in (b"USER-DATA;1", b"META-DATA;1", b"NETWORK-CONFIG;1"):
        assert written.count(name) == 1
    assert b'"10.0.0.2/24"' in written
    assert b'"fd00::2/64"' in written
    assert b"#cloud-config\n" in written
    # With an empty list of keys to make, its whole document is called invalid.
    assert b"genkeytypes" not in written
    # Read from the folder, as who mounts it does: where each file begins, and how long it is.
    entry = written.index(b"META-DATA;1") - 33
    begins, length = (
        int.from_bytes(written[entry + at : entry + at + 4], "little") for at in (2, 10)
    )
    text = written[begins * 2048 : begins * 2048 + length]
    assert text.startswith(b'{\n "instance-id": "i-')
    assert text.endswith(b"}\n")


def test_a_file_system_holds_no_more_than_one_folder_does() -> None:
    with pytest.raises(errors.TooLarge):
        iso9660.write("x", {f"file-{number}": b"" for number in range(100)})
    with pytest.raises(errors.TooLarge):
        iso9660.write("x", {"a" * 31: b""})


def saved_file(path: Path, document: bytes, cookie: bytes, rest: bytes) -> Path:
    """Write a file as libvirt saves a machine."""
    documents = (document + b"\0" + cookie + b"\0").ljust(4096, b"\0")
    head = (b"LibvirtQemudSave", 2, len(documents), 1, 0, len(document) + 1)
    path.write_bytes(struct.pack("=16sIIIII56x", *head) + documents + rest)
    return path


def test_what_was_saved_is_given_another_document_and_keeps_the_rest(tmp_path: Path) -> None:
    rest = bytes(range(256)) * 100
    source = saved_file(tmp_path / "state", b"<domain>old</domain>", b"<cookie/>", rest)
    document = "<domain>" + "new" * 5000 + "</domain>"
    saving.copy_for(document, source, tmp_path / "copy")
    copied = (tmp_path / "copy").read_bytes()
    magic, _, length, ran, _, second = struct.unpack_from("=16sIIIII56x", copied)
    documents = copied[92 : 92 + length]
    assert (magic, ran) == (b"LibvirtQemudSave", 0)
    assert documents == document.encode() + b"\0<cookie/>\0"
    assert documents[second:] == b"<cookie/>\0"
    assert copied[92 + length :] == rest


@pytest.mark.parametrize("damage", [b"", b"LibvirtQemudPart", b"LibvirtQemudSave\x63"])
def test_what_is_not_whole_or_of_another_form_is_refused(tmp_path: Path, damage: bytes) -> None:
    source = saved_file(tmp_path / "state", b"<domain/>", b"<cookie/>", b"")
    whole = source.read_bytes()
    source.write_bytes(damage + whole[len(damage) :] if damage else b"")
    with pytest.raises(errors.SnapshotDamaged):
        saving.copy_for("<domain/>", source, tmp_path / "copy")


def test_which_layer_a_machine_writes_is_read_from_what_libvirt_says() -> None:
    document = """<domain><devices>
      <disk><source file='/m/disk0.12.qcow2'/><backingStore><source file='/m/disk0.11.qcow2'/>
      </backingStore></disk><disk><source file='/images/root.squashfs'/></disk>
      <disk><source file='/m/disk2.1.qcow2'/></disk></devices></domain>"""
    assert saving.tops_of(document) == {0: 12, 2: 1}


def test_a_snapshot_takes_new_layers_where_something_is_written_and_nothing_elsewhere() -> None:
    document = ET.fromstring(  # noqa: S314 # we have just written it
        domain.write_snapshot("s-1", Path("/s/state"), 2, {0: Path("/m/disk0.2.qcow2")})
    )
    assert found(document, "memory").attrib == {"snapshot": "external", "file": "/s/state"}
    written, read = document.iterfind("disks/disk")
    assert (written.attrib["snapshot"], read.attrib["snapshot"]) == ("external", "no")
    assert found(written, "source").attrib["file"] == "/m/disk0.2.qcow2"


@pytest.fixture(scope="module")
def daemon() -> Generator[libvirtd.Libvirtd]:
    session = os.geteuid() != 0
    if why := libvirtd.why_not(session=session):
        pytest.skip(why)
    with libvirtd.running_libvirtd(session=session) as daemon:
        yield daemon


async def test_a_libvirtd_that_is_not_there_says_nothing_about_a_machine(tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/nowhere"
    async with open_connection(uri) as connection:
        with pytest.raises(errors.Unavailable, match="does not answer") as told:
            await connection.ask(lambda virt: virt.lookupByUUIDString(UUID))
    assert not isinstance(told.value, errors.MachineFailed)


async def test_a_machine_that_libvirt_does_not_know_is_not_found(
    daemon: libvirtd.Libvirtd,
) -> None:
    async with open_connection(daemon.uri) as connection:
        with pytest.raises(errors.NotFound):
            await connection.ask(lambda virt: virt.lookupByUUIDString(UUID))


async def test_a_libvirtd_that_was_started_anew_is_asked_and_told_as_before(
    daemon: libvirtd.Libvirtd,
) -> None:
    with anyio.fail_after(LONG_S):
        async with open_connection(daemon.uri) as connection:
            version = await connection.ask(lambda virt: virt.getLibVersion())
            daemon.restart()
            assert await connection.ask(lambda virt: virt.getLibVersion()) == version
            daemon.restart()
            assert await connection.tell(lambda virt: virt.getLibVersion()) == version


async def test_what_may_have_been_done_is_not_done_again(daemon: libvirtd.Libvirtd) -> None:
    done: list[int] = []

    with anyio.fail_after(LONG_S):
        async with open_connection(daemon.uri) as connection:
            await connection.ask(lambda virt: virt.getLibVersion())

            def deed(virt: object) -> None:
                done.append(1)
                daemon.kill()
                virt.getLibVersion()  # type: ignore[attr-defined]  # it is a connection

            with pytest.raises(errors.UnknownOutcome):
                await connection.tell(deed)
            assert done == [1]
            with pytest.raises(errors.Unavailable):
                await connection.tell(deed)
            assert done == [1]
            daemon.start()
            assert await connection.tell(lambda virt: virt.getLibVersion())
