"""A console's file: read by offset, bounded on the disk, safe to show."""

from __future__ import annotations

from pathlib import Path

from microvm_orchestrator.machine import console

MIB = 1 << 20


def test_what_is_read_begins_where_it_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"one\ntwo\n")
    assert console.read(path, 4, 100) == (4, b"two\n")
    assert console.read(path, 0, 3) == (0, b"one")
    assert console.read(path, 8, 100) == (8, b"")


def test_a_console_that_is_not_there_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "console"
    assert (console.read(path, 5, 10), console.tail(path)) == ((5, b""), "")
    assert (console.size(path), console.let_go(path)) == (0, 0)


def test_the_older_part_is_given_back_and_what_is_left_keeps_its_offsets(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"x" * (5 * MIB) + b"the end")
    assert console.let_go(path) == 5 * MIB + 7
    assert path.stat().st_size == 5 * MIB + 7
    assert path.stat().st_blocks * 512 < 2 * MIB
    begin, data = console.read(path, 0, 10)
    assert (begin >= 3 * MIB, data) == (True, b"x" * 10)
    assert console.read(path, 5 * MIB, 100) == (5 * MIB, b"the end")


def test_a_small_console_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"x" * (MIB + 1))
    console.let_go(path)
    assert console.read(path, 0, 1) == (0, b"x")


def test_its_tail_has_nothing_a_terminal_would_obey(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"early\r\n\x1b[2J\x07late \xff\xc2\x9b31m\r\n")
    assert console.tail(path) == "early\n[2Jlate \ufffd31m"
    assert console.tail(path, since=7) == "[2Jlate \ufffd31m"
    assert console.tail(path, most=5).endswith("31m")
