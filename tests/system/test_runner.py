"""Runner directories whose script becomes a real QEMU, beyond the contract of machines."""

from __future__ import annotations

import shlex
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

import nix_runner
from machines import LONG_S, Rig, built_image, removed_in_the_end, sh
from microvm_orchestrator import errors
from microvm_orchestrator.images.runner import ROOT, add, bootable
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.machine.base import Boot, Link, Terminal
from microvm_orchestrator.machine.hypervisor import AnyKind
from microvm_orchestrator.machine.probe import probe
from microvm_orchestrator.runner import RUN, Runner, read
from standin_runner import Q35, Wanted, kernel_words, make, qemu_command, runner_rig

MAC = "52:54:00:12:34:56"
READER = "echo tell me; read line; echo the guest read $line"


@pytest.fixture(scope="module")
async def boot() -> Boot:
    return await built_image()


@pytest.fixture(scope="module")
async def tsc_khz(tmp_path_factory: pytest.TempPathFactory) -> int:
    return (await probe(tmp_path_factory.mktemp("probe"))).tsc_khz or 0


@pytest.fixture
def rig(tmp_path: Path, boot: Boot, tsc_khz: int) -> Rig:
    return runner_rig(tmp_path, boot, tsc_khz)


@pytest.fixture
async def hypervisor(rig: Rig) -> AsyncGenerator[AnyKind]:
    with anyio.fail_after(LONG_S):
        async with rig.open_any() as hypervisor, removed_in_the_end(hypervisor):
            yield hypervisor


async def until_said(terminal: Terminal, words: bytes) -> None:
    said = b""
    async for data in terminal:
        said += data
        if words in said:
            return


async def test_the_console_of_a_runner_is_one_to_type_at_and_links_are_ours(
    rig: Rig, hypervisor: AnyKind
) -> None:
    machine = await hypervisor.start(rig.spec(links=(Link(MAC, "10.9.8.7/24"),)))
    async with machine.attach() as terminal:
        with pytest.raises(errors.StateForbids, match="held already"):
            async with machine.attach():
                pass
        await sh(machine, f"({READER}) </dev/console >/dev/console 2>&1 &")
        await until_said(terminal, b"tell me")
        await terminal.type(b"hello\n")
        await until_said(terminal, b"the guest read hello")
    shown = await sh(machine, "ip -o addr show eth0; cat /sys/class/net/eth0/address")
    assert "10.9.8.7/24" in shown
    assert MAC in shown
    assert [link.is_socket() for link in machine.links] == [True]
    # QEMU writes its log a moment after it has told who listens.
    await machine.kill()
    console = machine.console.read_bytes()
    # From before there was a monitor, and from after.
    assert console.index(b"Linux version") < console.index(b"the guest read hello")


async def test_a_runner_with_a_pci_bus_is_reached_over_it(
    rig: Rig, hypervisor: AnyKind, tmp_path: Path, boot: Boot
) -> None:
    # Where there is the hardware of a PC, an emulated clock needs no words of ours.
    command = qemu_command(boot, boot.cmdline, memory_mib=256, vcpus=1, machine=Q35)
    runner = read(make(tmp_path / "pc", Wanted(command=command)))
    spec = replace(rig.spec(links=(Link(MAC),)), boot=runner)
    machine = await hypervisor.start(spec)
    paths = "/sys/class/virtio-ports/*/device /sys/class/net/eth0"
    buses = await sh(machine, f"for path in {paths}; do readlink -f $path; done")
    assert [line.startswith("/sys/devices/pci") for line in buses.splitlines()] == [True, True]


async def test_no_word_of_ours_is_more_to_the_script_than_a_word(
    rig: Rig, hypervisor: AnyKind
) -> None:
    for mac in (f"{MAC} -monitor stdio", f"{MAC}*", f"{MAC}$(id)"):
        with pytest.raises(errors.InvalidInput, match="cannot be handed on"):
            await hypervisor.start(rig.spec(links=(Link(mac),)))


async def test_what_qemu_says_of_arguments_it_does_not_know_is_told(
    rig: Rig, hypervisor: AnyKind, tmp_path: Path
) -> None:
    command = ["/usr/bin/qemu-system-x86_64", "-no-such-thing"]
    runner = read(make(tmp_path / "wrong", Wanted(command=command)))
    with pytest.raises(errors.MachineBootFailed, match="no-such-thing: invalid option"):
        await hypervisor.start(replace(rig.spec(), boot=runner))


async def test_a_runner_whose_own_arguments_are_not_ours_is_not_reached_and_ended(
    rig: Rig, hypervisor: AnyKind, tmp_path: Path, boot: Boot
) -> None:
    command = qemu_command(boot, "quiet", memory_mib=256, vcpus=1)
    how = Wanted(command=[*command, "-machine", "accel=tcg", "-cpu", "max"])
    made = make(tmp_path / "deaf", how)
    (tmp_path / "deaf" / "store" / "microvm-slot0-runtime-args").write_text("#!/bin/sh\necho\n")
    spec = replace(rig.spec(), boot=read(made), boot_timeout_s=2.0)
    with pytest.raises(errors.MachineBootFailed, match="did not greet at its monitor"):
        await hypervisor.start(spec)


def of_microvm_nix(rig: Rig, tmp_path: Path, tsc_khz: int) -> tuple[Runner, nix_runner.Nix]:
    if why := nix_runner.why_not():
        pytest.skip(why)
    nix = nix_runner.lay_out(tmp_path / "nix")
    parts = replace(rig, runner=None).spec()
    nix.describe(parts, kernel_words(parts, tsc_khz))
    return read(nix.build()), nix


def test_the_runner_of_these_tests_says_word_for_word_what_microvm_nix_says(
    rig: Rig, tmp_path: Path, tsc_khz: int
) -> None:
    real, _ = of_microvm_nix(rig, tmp_path, tsc_khz)
    standin = rig.spec().boot
    assert isinstance(standin, Runner)

    def words(runner: Runner) -> list[str]:
        script = (runner.path / RUN).read_text()
        return shlex.split(script[script.index("\nexec ") :])

    assert words(standin) == words(real)
    assert standin == replace(real, digest=standin.digest, path=standin.path)


async def test_an_image_that_nix_builds_is_kept_from_its_garbage_collector_until_it_is_removed(
    rig: Rig, tmp_path: Path, tsc_khz: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nix = of_microvm_nix(rig, tmp_path, tsc_khz)
    flake = nix.folder / "flake.nix"
    flake.write_text("{ outputs = { self }: { runner = import ./default.nix { }; }; }\n")
    for name, value in nix.environment.items():
        monkeypatch.setenv(name, value)
    images = ImageStore(tmp_path / "images")
    image = await add(f"path:{nix.folder}#runner", images, "built")
    runner = bootable(image)
    assert (image.folder / ROOT).resolve() == runner.path
    nix.collect_garbage()
    assert bootable(images.get("built")) == runner  # type: ignore[arg-type]  # one that is built is of this kind
    images.remove("built")
    nix.collect_garbage()
    assert not runner.path.exists()
