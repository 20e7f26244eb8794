from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.images.manifest import MANIFEST, Agent, Disk, Inputs, Manifest, digest_of
from microvm_orchestrator.images.store import Image, ImageStore, stored

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = "0" * 64


def inputs(builder: str = NOTHING) -> Inputs:
    return Inputs(builder=builder, guest=NOTHING, packages={}, tools={}, extras={})


def publish(store: ImageStore, root: bytes = b"root", builder: str = NOTHING) -> Image:
    with store.new_folder() as folder:
        for name, data in (("kernel", b"kernel"), ("initrd", b"initrd"), ("root.squashfs", root)):
            (folder / name).write_bytes(data)
        disk = Disk(**stored(folder / "root.squashfs").model_dump(), serial="root")
        manifest = Manifest(
            architecture="amd64",
            kernel_release="6.1",
            kernel=stored(folder / "kernel"),
            initrd=stored(folder / "initrd"),
            disks=(disk,),
            cmdline="",
            agent=Agent(protocol=1, port="ctl"),
            inputs=inputs(builder),
        )
        return store.publish(folder, manifest)


def test_an_image_is_found_by_its_digest_and_by_every_name(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    image = publish(store)
    store.name(image, "one")
    named = store.name(image, "two")
    assert named.names == ("one", "two")
    assert store.get("one") == store.get("two") == store.get(image.digest) == named
    assert store.list() == [named]
    assert named.path(named.manifest.kernel).read_bytes() == b"kernel"
    assert store.verify(named) == []


def test_an_image_cannot_be_written_by_accident(tmp_path: Path) -> None:
    image = publish(ImageStore(tmp_path / "images"))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in image.folder.iterdir()}
    assert modes == {0o444}


def test_the_same_content_is_the_same_image(tmp_path: Path) -> None:
    store, other = ImageStore(tmp_path / "images"), ImageStore(tmp_path / "elsewhere")
    assert publish(store).digest == publish(store).digest == publish(other).digest
    assert len(store.list()) == 1
    assert publish(store, b"another root").digest != publish(store).digest
    assert len(store.list()) == 2


def test_a_name_moves_to_the_newest_and_the_older_image_stays(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    old = store.name(publish(store), "embedded")
    new = store.name(publish(store, b"another root"), "embedded")
    assert store.get("embedded") == new
    assert store.get(old.digest).names == ()
    assert [image.digest for image in store.list()] == [new.digest, old.digest]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "Big", "-x", "x" * 64, "f" * 64])
def test_what_is_a_path_or_looks_like_a_digest_is_no_name(tmp_path: Path, name: str) -> None:
    store = ImageStore(tmp_path / "images")
    image = publish(store)
    with pytest.raises(errors.InvalidInput):
        store.name(image, name)
    with pytest.raises(errors.NotFound):
        store.get(name)
    with pytest.raises(errors.NotFound):
        store.remove(name)
    assert store.list() == [image]


def test_removing_takes_the_image_with_its_names_and_nothing_else(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    kept = store.name(publish(store), "kept")
    gone = store.name(publish(store, b"another root"), "gone")
    store.name(gone, "gone-too")
    assert store.remove("gone") == gone.digest
    assert store.list() == [kept]
    assert sorted(path.name for path in store.folder.iterdir()) == sorted([kept.digest, "names"])
    for reference in ("gone", "gone-too", gone.digest):
        with pytest.raises(errors.NotFound):
            store.get(reference)
    with pytest.raises(errors.NotFound):
        store.remove(gone.digest)


def test_a_store_that_does_not_exist_yet_is_empty(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    assert store.list() == []
    assert store.damaged() == {}
    with pytest.raises(errors.NotFound):
        store.get("embedded")


def test_an_image_is_found_by_what_it_was_made_of(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    image = publish(store)
    assert store.find_made_of(inputs()) == image
    assert store.find_made_of(inputs("1" * 64)) is None


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Oops(Exception):
        pass

    store = ImageStore(tmp_path / "images")

    def fail() -> None:
        with store.new_folder() as folder:
            (folder / "kernel").write_bytes(b"half")
            raise Oops

    with pytest.raises(Oops):
        fail()
    assert list(store.folder.iterdir()) == []


def test_what_a_killed_build_left_goes_after_a_day_and_not_before(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    young, old = store.folder / ".new-young", store.folder / ".new-old"
    for folder in (young, old):
        folder.mkdir(parents=True)
        (folder / "kernel").write_bytes(b"half")
    day_ago = time.time() - 90_000
    os.utime(old, (day_ago, day_ago))
    publish(store)
    assert young.exists()
    assert not old.exists()


def test_a_damaged_image_is_told_and_does_not_hide_the_others(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    whole = store.name(publish(store), "whole")
    damaged = store.name(publish(store, b"another root"), "damaged")
    manifest = damaged.folder / MANIFEST
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b"6.1", b"6.2"))
    assert store.list() == [whole]
    assert list(store.damaged()) == [damaged.digest]
    assert store.find_made_of(inputs()) == whole
    with pytest.raises(errors.ImageDamaged, match="has been changed"):
        store.get("damaged")
    store.remove("damaged")
    assert store.damaged() == {}


def test_a_manifest_of_another_release_is_told_as_damaged(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    image = publish(store)
    written = image.manifest.written().replace(b'"format": 1', b'"format": 2')
    strange = store.folder / digest_of(written)
    strange.mkdir()
    (strange / MANIFEST).write_bytes(written)
    assert store.list() == [image]
    assert "cannot be read" in store.damaged()[strange.name]


def test_a_file_that_has_changed_or_gone_is_named(tmp_path: Path) -> None:
    image = publish(ImageStore(tmp_path / "images"))
    kernel = image.folder / "kernel"
    kernel.chmod(0o644)
    kernel.write_bytes(b"kerneL")
    (image.folder / "initrd").unlink()
    assert ImageStore(tmp_path / "images").verify(image) == ["kernel", "initrd"]


def test_building_a_damaged_image_anew_heals_it(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    image = store.name(publish(store), "embedded")
    (image.folder / "kernel").unlink()
    assert publish(store).digest == image.digest
    assert store.verify(store.get("embedded")) == []
