"""Disks in QEMU's format, as we make them."""

from __future__ import annotations

from pathlib import Path

import pytest

from microvm_orchestrator import errors
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
    for look in (qcow2.size_of, qcow2.check_alone):
        with pytest.raises(errors.InvalidInput, match="disk is no qcow2"):
            look(tmp_path / "disk")


# Where in the header, and what: the name of a file below, data in another file, a future feature.
ELSEWHERE = {"below": (8, 0x200), "data": (72, 1 << 2), "unknown": (72, 1 << 63)}


@pytest.mark.parametrize("how", ELSEWHERE)
def test_a_disk_that_would_lead_to_another_file_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "disk"
    qcow2.create(path, GIB)
    qcow2.check_alone(path)
    at, value = ELSEWHERE[how]
    with path.open("r+b") as file:
        file.seek(at)
        file.write(value.to_bytes(8, "big"))
    with pytest.raises(errors.InvalidInput, match="another file"):
        qcow2.check_alone(path)
