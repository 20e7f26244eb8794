"""What a control group tells of a machine, from files as the kernel writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator.machine.cgroup import Group

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_killed_for_its_memory_is_counted(tmp_path: Path) -> None:
    group = Group(tmp_path)
    events = "low 0\nhigh 0\nmax 17\noom 3\noom_kill {}\noom_group_kill 5\n"
    (tmp_path / "memory.events").write_text(events.format(0))
    assert group.memory_kills() == 0
    (tmp_path / "memory.events").write_text(events.format(2))
    assert group.memory_kills() == 2


def test_a_group_without_a_limit_on_memory_counts_nothing(tmp_path: Path) -> None:
    assert Group(tmp_path).memory_kills() == 0
