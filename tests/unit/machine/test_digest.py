"""Sparse files: what counts is what is not zero."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from microvm_orchestrator.machine.digest import copy, copy_sparse, sparse_sha256

BLOCK = 1 << 16


def write(path: Path, size: int, parts: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in parts.items():
            file.seek(at)
            file.write(data)
    return path


def test_zeros_count_the_same_whether_they_are_written_or_holes(tmp_path: Path) -> None:
    parts = {3 * BLOCK + 5: b"something"}
    sparse = write(tmp_path / "sparse", 10 * BLOCK + 7, parts)
    full = write(tmp_path / "full", 10 * BLOCK + 7, {0: bytes(10 * BLOCK + 7), **parts})
    assert sparse_sha256(sparse) == sparse_sha256(full)


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (10 * BLOCK, {3 * BLOCK + 6: b"something"}),  # elsewhere
        (10 * BLOCK, {3 * BLOCK + 5: b"something", 0: b"x"}),
        (10 * BLOCK + 1, {3 * BLOCK + 5: b"something"}),  # larger
        (10 * BLOCK, {4 * BLOCK + 5: b"something"}),  # the same in another block
        (10 * BLOCK, {}),
    ],
)
def test_everything_else_counts(tmp_path: Path, size: int, parts: dict[int, bytes]) -> None:
    one = write(tmp_path / "one", 10 * BLOCK, {3 * BLOCK + 5: b"something"})
    other = write(tmp_path / "other", size, parts)
    assert sparse_sha256(one) != sparse_sha256(other)


def test_a_copy_is_the_same_and_has_no_zeros(tmp_path: Path) -> None:
    source = write(tmp_path / "source", 50 * BLOCK, {0: bytes(50 * BLOCK), 7 * BLOCK: b"x"})
    fd = os.open(source, os.O_RDONLY)
    try:
        digest = copy_sparse(fd, tmp_path / "copy")
    finally:
        os.close(fd)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert digest == sparse_sha256(source) == sparse_sha256(tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_blocks * 512 <= 2 * BLOCK


def test_what_lies_in_many_blocks_and_none_is_copied_with_the_digest_of_each(
    tmp_path: Path,
) -> None:
    # Rows of blocks that end before, at and behind what is read at once, and a part of one.
    parts = {at * BLOCK + 9: b"x" * BLOCK for at in (0, 2, 3, 7, 8, 14, 15, 16, 17, 31)}
    source = write(tmp_path / "source", 33 * BLOCK + 77, parts)
    content = source.read_bytes()
    told = hashlib.sha256(len(content).to_bytes(8, "big"))
    for at in range(0, len(content), BLOCK):
        block = content[at : at + BLOCK]
        if any(block):
            told.update(at.to_bytes(8, "big") + block)
    with source.open("rb") as file:
        assert copy_sparse(file.fileno(), tmp_path / "told") == told.hexdigest()
        copy(file.fileno(), tmp_path / "untold")
    assert (tmp_path / "told").read_bytes() == (tmp_path / "untold").read_bytes() == content
    assert sparse_sha256(tmp_path / "untold") == told.hexdigest()
