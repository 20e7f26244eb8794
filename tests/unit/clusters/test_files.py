"""Topologies that lie in a folder: found by one word, and by nothing that leads elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.clusters import files
from microvm_orchestrator.clusters.strict_yaml import MAX_CHARS


def test_a_topology_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("cluster_name: one")
    (tmp_path / "two.yml").write_text("cluster_name: two")
    (tmp_path / "note.txt").write_text("x")
    assert files.find(tmp_path, "one") == "cluster_name: one"
    assert files.find(tmp_path, "two") == "cluster_name: two"
    assert files.names(tmp_path) == ["one", "two"]
    with pytest.raises(errors.NotFound) as unknown:
        files.find(tmp_path, "three")
    assert unknown.value.hint == "there are: one, two"


@pytest.mark.parametrize(
    "name", ["../one", "one/../../x", "/etc/passwd", "", ".", "..", "a\0b", "one.yaml", "x" * 65]
)
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "topologies"
    folder.mkdir()
    (tmp_path / "one.yaml").write_text("cluster_name: one")
    with pytest.raises(errors.InvalidInput):
        files.find(folder, name)


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound) as unknown:
        files.find(tmp_path / "absent", "one")
    assert unknown.value.hint == "there are: none"


def test_of_a_large_file_no_more_is_read_than_may_be_refused(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_CHARS * 9))
    assert MAX_CHARS < len(files.find(tmp_path, "large")) < MAX_CHARS * 5
    (tmp_path / "odd.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(errors.InvalidInput, match="not UTF-8"):
        files.find(tmp_path, "odd")
