"""Runner directories as images: what is read of one, what is refused, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.images.manifest import RunnerManifest
from microvm_orchestrator.images.runner import add, bootable
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.runner import Runner, read
from standin_runner import Wanted, make

# As `lib.escapeShellArgs` of nixpkgs writes it.
COMMAND = [
    *("/usr/bin/qemu-system-x86_64", "-name", "slot0", "-M", "q35,accel=kvm:tcg", "-m", "768M"),
    *("-smp", "2", "-device", "virtio-rng-pci", "-append", "console=ttyS0 init=/some where"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "made", Wanted(command=COMMAND, tap="vm-slot0", share="store"))


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def test_what_a_runner_says_of_its_guest_is_read(folder: Path) -> None:
    runner = read(folder)
    assert runner == Runner(
        digest=runner.digest,
        path=folder,
        hypervisor="qemu",
        takes_arguments=True,
        bus="pci",
        memory_mib=768,
        vcpus=2,
        taps=("vm-slot0",),
        shares=("store",),
    )


def test_a_link_to_a_runner_is_followed_to_where_it_is_now(folder: Path) -> None:
    link = folder.with_name("current")
    link.symlink_to(folder)
    assert read(link) == read(folder)


def test_a_runner_of_another_hypervisor_says_less(tmp_path: Path) -> None:
    wanted = Wanted("cloud-hypervisor", ["/bin/cloud-hypervisor", "--cpus", "boot=1"])
    runner = read(make(tmp_path / "made", wanted))
    assert (runner.hypervisor, runner.memory_mib, runner.vcpus) == ("cloud-hypervisor", None, None)


def test_two_runners_that_differ_in_a_word_have_two_digests(tmp_path: Path, folder: Path) -> None:
    other = make(tmp_path / "other", Wanted(command=[*COMMAND, "-no-reboot"]))
    assert read(other).digest != read(folder).digest


def remove_script(folder: Path) -> None:
    (folder / "bin" / "microvm-run").unlink()


def remove_hypervisor(folder: Path) -> None:
    (folder / "share" / "microvm" / "hypervisor").unlink()


def forbid_to_run(folder: Path) -> None:
    (folder / "bin" / "microvm-run").resolve().chmod(0o644)


def name_nonsense(folder: Path) -> None:
    (folder / "share" / "microvm" / "hypervisor").write_text("../../bin/sh\n")


def become_nothing(folder: Path) -> None:
    (folder / "bin" / "microvm-run").resolve().write_text("#!/bin/sh\necho hello\n")


def grow(folder: Path) -> None:
    with (folder / "bin" / "microvm-run").resolve().open("ab") as script:
        script.truncate(2 << 20)


def leave_a_quote_open(folder: Path) -> None:
    (folder / "bin" / "microvm-run").resolve().write_text("#!/bin/sh\nexec qemu 'and so on\n")


@pytest.mark.parametrize(
    ("breaking", "named"),
    [
        (remove_script, "bin/microvm-run: No such file"),
        (remove_hypervisor, "share/microvm/hypervisor: No such file"),
        (forbid_to_run, "is not executable"),
        (name_nonsense, "names no hypervisor"),
        (become_nothing, "does not become a QEMU"),
        (grow, "too large"),
        (leave_a_quote_open, "does not become a QEMU"),
    ],
)
async def test_a_broken_directory_is_refused_with_what_is_wrong_with_it(
    folder: Path, images: ImageStore, breaking: Callable[[Path], None], named: str
) -> None:
    breaking(folder)
    with pytest.raises(errors.InvalidInput, match=named):
        await add(str(folder), images, "broken")
    assert images.list() == []


async def test_an_image_of_a_runner_is_found_and_removed_like_any_other(
    folder: Path, images: ImageStore
) -> None:
    image = await add(str(folder), images, "slot")
    assert image == await add(str(folder), images, "slot")
    assert (images.get("slot"), images.list()) == (image, [image])
    assert image.manifest == RunnerManifest(
        architecture=image.manifest.architecture,
        hypervisor="qemu",
        path=str(folder),
        runner=read(folder).digest,
        memory_mib=768,
        vcpus=2,
    )
    assert (images.verify(image), bootable(image)) == ([], read(folder))
    images.remove("slot")
    assert images.list() == []
    assert read(folder).digest == image.manifest.runner


async def test_a_runner_that_was_changed_or_is_gone_is_no_longer_the_image(
    folder: Path, images: ImageStore
) -> None:
    image = await add(str(folder), images, "slot")
    script = (folder / "bin" / "microvm-run").resolve()
    script.write_text(script.read_text().replace("768M", "512M"))
    assert images.verify(image) == [str(folder)]
    with pytest.raises(errors.ImageDamaged, match="is not what it was"):
        bootable(image)
    again = await add(str(folder), images, "slot")
    assert again.digest != image.digest
    (folder / "bin").rename(folder / "away")
    assert images.verify(again) == [str(folder)]
    with pytest.raises(errors.ImageDamaged, match="is gone"):
        bootable(again)


async def test_what_would_have_to_be_built_needs_nix(
    tmp_path: Path, images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.InvalidInput, match="no Nix here"):
        await add(".#nixosConfigurations.slot", images, "slot")
    with pytest.raises(errors.InvalidInput, match="no name of anything"):
        await add("--option", images, "slot")
