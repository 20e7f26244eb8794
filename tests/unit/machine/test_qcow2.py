"""Disks in QEMU's format, as we make them."""

from __future__ import annotations

from pathlib import Path

import pytest

from microvm_orchestrator.machine.qemu import qcow2

GIB = 1 << 30


@pytest.mark.parametrize("size", [512, GIB, 513 << 20, qcow2.MAX_BYTES])
def test_a_new_disk_has_its_size_and_takes_next_to_nothing(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk"
    qcow2.create(path, size)
    assert qcow2.size_of(path) == size
    assert path.stat().st_blocks * 512 <= 64 << 10


def test_a_disk_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        qcow2.create(tmp_path / "disk", GIB)
    assert (tmp_path / "disk").read_bytes() == b"precious"


def test_what_is_no_such_disk_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="disk is no qcow2"):
        qcow2.size_of(tmp_path / "disk")
