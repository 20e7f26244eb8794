"""What nodes are told of each other's names, and which file of a guest is left as it is."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from microvm_orchestrator.clusters.names import (
    _WRITE,  # pyright: ignore[reportPrivateUsage]  # what runs in guests is tried out here
    lines_for,
    mark_of,
)

MARK = mark_of("trio")
PLACES = {
    "n1": {"lan": ["10.9.0.11", "fd09::11"], "storage": ["10.10.0.11"]},
    "n2": {"storage": ["10.10.0.12"], "lan": ["10.9.0.12"]},
    "apart": {"storage": ["10.10.0.7"]},
    "localhost": {"lan": ["10.9.0.14"]},
    "unmade": dict[str, list[str]](),
}


def test_a_node_knows_others_by_the_first_network_in_which_it_meets_them() -> None:
    assert lines_for("n1", PLACES, MARK) == [
        f"10.9.0.11 n1 {MARK}",
        f"fd09::11 n1 {MARK}",
        f"10.9.0.12 n2 {MARK}",
        f"10.10.0.7 apart {MARK}",
    ]
    assert lines_for("apart", PLACES, MARK) == [
        f"10.10.0.11 n1 {MARK}",
        f"10.10.0.12 n2 {MARK}",
        f"10.10.0.7 apart {MARK}",
    ]
    assert lines_for("unmade", PLACES, MARK) == []


def written(path: Path, lines: list[str], node: str | None = None) -> str:
    """Run what a guest runs, on a file of ours; what stands there then."""
    words = [node or socket.gethostname(), MARK, "\n".join(lines)]
    env = {**os.environ, "MICROVM_ORCHESTRATOR_HOSTS": str(path)}
    subprocess.run(["/bin/sh", "-c", _WRITE, "names", *words], check=True, env=env)
    return path.read_text() if path.exists() else ""


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n10.9.0.12 n2 # of cluster trio-two\n")
    path.chmod(0o640)
    return path


def test_lines_of_an_earlier_start_are_replaced_and_all_else_stays(hosts: Path) -> None:
    before = hosts.read_text()
    assert written(hosts, [f"10.9.0.11 n1 {MARK}"]) == f"{before}10.9.0.11 n1 {MARK}\n"
    inode = hosts.stat().st_ino
    assert written(hosts, [f"10.9.0.11 n1 {MARK}"]) == f"{before}10.9.0.11 n1 {MARK}\n"
    assert hosts.stat().st_ino == inode  # nothing was to be written
    two = [f"10.9.0.15 n1 {MARK}", f"fd09::15 n1 {MARK}"]
    assert written(hosts, two) == before + "".join(f"{line}\n" for line in two)
    assert hosts.stat().st_mode & 0o777 == 0o640
    assert written(hosts, []) == before
    assert [path.name for path in hosts.parent.iterdir()] == ["hosts"]


def test_a_file_that_something_else_makes_and_a_guest_of_another_name_are_left_alone(
    hosts: Path, tmp_path: Path
) -> None:
    before, lines = hosts.read_text(), [f"10.9.0.11 n1 {MARK}"]
    assert written(hosts, lines, node="another") == before
    link = tmp_path / "link"
    link.symlink_to(hosts)
    assert written(link, lines) == before
    assert written(tmp_path / "absent", lines) == ""
