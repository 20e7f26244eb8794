"""What a control group tells of a machine, from files as the kernel writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import groups
from microvm_orchestrator.machine.cgroup import Group, describe

# In a group of its own: opens the place for machines twice, as a daemon and the next one do.
OPENS = """
import os, sys
from pathlib import Path
from microvm_orchestrator.machine import cgroup
group, controller = Path(sys.argv[1]), sys.argv[2]
cgroup.Group(group).add(os.getpid())
for _ in range(2):
    tree = cgroup.open_tree([controller])
    print(tree.controllers, tree.make("one").path)
    print(Path("/proc/self/cgroup").read_text().splitlines()[-1])
"""

# In a group of its own, where root has opened the place before.
OPENS_AFTER_ROOT = """
import os, sys
from pathlib import Path
from microvm_orchestrator.machine import cgroup
cgroup.Group(Path(sys.argv[1])).add(os.getpid())
assert cgroup.open_tree([]) is not None
os.setuid(65534)
print(cgroup.open_tree([]), cgroup.describe(), sep=": ")
"""

# Where systemd has started it: puts a machine into its place, and ends.
STARTED = """
import os, sys
from pathlib import Path
from microvm_orchestrator.machine import cgroup
cgroup.Group(Path(sys.argv[1])).add(os.getpid())
os.environ["SYSTEMD_EXEC_PID"] = str(os.getpid())
tree = cgroup.open_tree([sys.argv[2]])
tree.make("one").add(int(sys.argv[3]))
print(*tree.controllers)
"""


def test_what_was_killed_for_its_memory_is_counted(tmp_path: Path) -> None:
    group = Group(tmp_path)
    events = "low 0\nhigh 0\nmax 17\noom 3\noom_kill {}\noom_group_kill 5\n"
    (tmp_path / "memory.events").write_text(events.format(0))
    assert group.memory_kills() == 0
    (tmp_path / "memory.events").write_text(events.format(2))
    assert group.memory_kills() == 2


def test_a_group_without_a_limit_on_memory_counts_nothing(tmp_path: Path) -> None:
    assert Group(tmp_path).memory_kills() == 0


def test_a_daemon_alone_in_its_group_leaves_it_to_hand_its_controllers_down() -> None:
    root = groups.root()
    if root is None or not os.access(root, os.W_OK):
        pytest.skip(describe())
    controllers = (root / "cgroup.controllers").read_text().split()
    if not controllers:
        pytest.skip("the second version of control groups has no controller here")
    held = root / "cgroup.subtree_control"
    before = held.read_text().split()
    with groups.own_group() as group:
        held.write_text(f"+{controllers[0]}")
        try:
            words = [sys.executable, "-c", OPENS, str(group), controllers[0]]
            said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            place = f"{{{controllers[0]!r}}} {group}/microvm-orchestrator/one"
            aside = f"0::/{group.name}/daemon"
            assert said.splitlines() == [place, aside, place, aside]
        finally:
            if controllers[0] not in before:
                for path in (group / "microvm-orchestrator", group):
                    (path / "cgroup.subtree_control").write_text(f"-{controllers[0]}")
                held.write_text(f"-{controllers[0]}")


@pytest.mark.parametrize("place", [".", "daemon"])
def test_systemd_can_start_the_next_daemon_where_it_started_the_last_while_machines_are_there(
    place: str,
) -> None:
    root = groups.root()
    if root is None or not os.access(root, os.W_OK):
        pytest.skip(describe())
    controllers = (root / "cgroup.controllers").read_text().split()
    if not controllers:
        pytest.skip("the second version of control groups has no controller here")
    held = root / "cgroup.subtree_control"
    before = held.read_text().split()
    with groups.own_group() as group, subprocess.Popen(["sleep", "1000"]) as machine:
        held.write_text(f"+{controllers[0]}")
        (group / place).mkdir(exist_ok=True)
        try:
            words = [sys.executable, "-c", STARTED, str(group / place), controllers[0]]
            words.append(str(machine.pid))
            said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            assert said.split() == ([] if place == "." else [controllers[0]])
            next_one = ["sh", "-c", 'echo $$ >"$1/cgroup.procs"', "sh", str(group / place)]
            assert subprocess.run(next_one, check=False).returncode == 0
        finally:
            machine.kill()
            machine.wait()
            if controllers[0] not in before:
                for path in (group / "microvm-orchestrator", group):
                    (path / "cgroup.subtree_control").write_text(f"-{controllers[0]}")
                held.write_text(f"-{controllers[0]}")


def test_a_daemon_without_rights_has_no_groups_where_one_of_root_made_the_place() -> None:
    root = groups.root()
    if os.geteuid() != 0 or root is None or not os.access(root, os.W_OK):
        pytest.skip(describe())
    with groups.own_group() as group:
        words = [sys.executable, "-c", OPENS_AFTER_ROOT, str(group)]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert said == "None: the daemon's control group may not be written\n"


def test_a_group_with_less_of_a_processor_is_told_so_until_it_has_the_usual(tmp_path: Path) -> None:
    group = Group(tmp_path)
    assert not group.holds_processors
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert group.holds_processors
    assert group.slowed(2) is None
    group.slow(2, 0.25)
    assert (tmp_path / "cpu.max").read_text().startswith("25000 100000")
    (tmp_path / "cpu.max").write_text("25000 100000\n")
    assert group.slowed(2) == 0.25
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    assert group.slowed(2) is None
