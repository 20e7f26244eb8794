"""The driver of NixOS tests: what its calls promise, on a machine that is a shell of this host."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from nix.driver import Failed, Machine, run_script, script_of
from nix.evaluation import ROOT

TESTS = sorted((ROOT / "tests/nixos").glob("*.nix"))
# It goes where the words of QEMU lead, as the console of a guest does.
GUEST = """\
import os, re, socket, sys
print("booting", flush=True)
[path] = re.findall("id=shell,path=(\\\\S+)", " ".join(sys.argv))
link = socket.socket(socket.AF_UNIX)
link.connect(path)
link.sendall(b"Spawning backdoor root shell...\\n")
os.dup2(link.fileno(), 0)
os.dup2(0, 1)
os.execvp("bash", ["bash", "--norc"])
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    program = tmp_path / "guest.py"
    program.write_text(GUEST)
    return Machine("machine", [sys.executable, "-I", "-S", program], tmp_path)


def test_a_script_runs_on_a_machine_and_tells_what_it_passed(
    machine: Machine, tmp_path: Path
) -> None:
    script = f"""
start_all()
with subtest("first"):
    assert machine.succeed("echo a; echo b", "echo c") == "a\\nb\\nc\\n"
    assert machine.execute("echo said; exit 7") == (7, "said\\n")
    assert machine.fail("false | cat") == ""
with subtest("second"):
    machine.execute("(sleep 0.2; touch {tmp_path}/made) >/dev/null &")
    machine.wait_for_file("{tmp_path}/made")
    machine.wait_until_fails("rm {tmp_path}/made")
"""
    assert run_script(script, [machine]) == ["first", "second"]


def test_a_machine_whose_power_is_cut_starts_anew(machine: Machine) -> None:
    script = """
shell = "cut -d ' ' -f 4 /proc/$PPID/stat"
machine.start()
before = machine.succeed(shell)
machine.crash()
machine.start()
assert machine.succeed(shell) != before
"""
    assert run_script(script, [machine]) == []
    assert machine.console.read_text().split() == ["booting", "booting"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("machine.succeed('exit 3')", "machine: `exit 3` failed with 3"),
        ("machine.fail('true')", "machine: `true` succeeded"),
        (
            "machine.succeed('kill -KILL $(cut -d \" \" -f 4 /proc/$PPID/stat)')",
            "machine: it has ended",
        ),
        ("machine.wait_until_succeeds('echo no; false', timeout=0)", "still says 1: no"),
    ],
)
def test_what_does_not_come_true_fails_the_script_in_words_that_help(
    machine: Machine, script: str, says: str
) -> None:
    with pytest.raises(Failed, match=says.replace("$", r"\$")):
        run_script(script, [machine])


def test_there_is_a_test_for_all_that_was_promised_of_a_host() -> None:
    names = {path.stem for path in TESTS}
    assert names >= {"service", "task", "restart", "reboot", "hardening", "upgrade", "cluster"}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_script_of_a_test_is_one_that_the_driver_can_run(path: Path) -> None:
    tree = ast.parse(script_of(path))
    calls = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "machine"
    }
    assert calls
    assert sorted(name for name in calls if not hasattr(Machine, name)) == []
