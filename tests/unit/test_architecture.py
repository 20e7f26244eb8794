"""The rules about the tree that no other tool checks."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NAME = "microvm_orchestrator"
PACKAGE = ROOT / "python" / NAME

# Imports point from a room to one in a later line, never up and never sideways.
FLOORS = [
    {"daemon"},
    {"cli", "web"},
    {"mcp_server"},
    {"service"},
    {"host"},
    {"runs", "clusters", "conversations"},
    {"lifecycle", "faults"},
    {"execs", "forwards", "snapshots", "seeded", "harms"},
    {"machines"},
    {"starting"},
    {"upkeep", "deliveries", "operations", "slots", "warm", "caches", "networks", "artifact_trees"},
    {"repos", "plans", "artifacts"},
    {"events"},
    {"network"},
    {"images", "machine", "git", "egress", "agents"},
    {"store"},
    {"config", "proc", "systemd"},
    {"agent_settings"},
    {"model", "log", "runner", "setting_values", "together", "splice", "cpio"},
    {"errors", "places", "loading"},
    {"__init__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# The command line is a client: it knows the daemon by its socket only.
SEEN_BY_CLI = {"cli", "errors", "places", "loading", "__init__"}

# What may look further all the same, and why.
EXCEPTIONS = {
    ("cli.serve", "daemon"): "the command that starts the daemon becomes it",
    ("cli.config", "config"): "`config check` explains what a daemon would read",
}

MAX_LINES = 600

# For each module a shell starts: what it must not load, because a person or an agent waits for it.
LIGHT = {
    "cli.main": {"pydantic", "mcp", "starlette", "uvicorn", "httpx2", "structlog", "anyio"},
    "cli.connect": {"pydantic", "mcp", "starlette", "uvicorn", "httpx2", "structlog", "anyio"}
    | {"typer", "click", "rich"},
}

# Written in two parts so that this file does not name them itself.
REGISTRIES = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "npmjs" + ".com"]
# An exception from a rule of ruff or pyright with nothing behind it.
BARE = re.compile(
    r"# (?:noqa(?:: [A-Z0-9, ]+)?|(?:type|pyright): ignore(?:\[[^]]*\])?)\s*$", re.MULTILINE
)
# Docs, examples and tests speak of the homes of `me` on a Mac, of `ada` and of `alice`.
SOMEBODYS_PATH = re.compile(
    r"(?<![\w.~*/}-])/(?:work|root|Users(?!/me/)|home/(?!(?:ada|alice)/)[a-z]\w*)/" + r"[\w.]"
)


@dataclass(frozen=True)
class Module:
    """A module of the package, without the package's name in front."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]


def read_modules() -> dict[str, Module]:
    modules: dict[str, Module] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path, ast.parse(path.read_text(), str(path)))
    return modules


MODULES = read_modules()


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Name the modules of the package that these statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from package import module` imports the module, `from module import thing` does not.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if local(name) in MODULES else node.module for name in names]
        else:
            continue
        yield from (local(name) for name in names if name.partition(".")[0] == NAME)


def local(name: str) -> str:
    return name.removeprefix(NAME).removeprefix(".") or "__init__"


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs on import: no function bodies, nothing for the type checker."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_run_time(child)


def every_python_file() -> list[Path]:
    return sorted(
        path
        for folder in ("python", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if "node_modules" not in path.parts
    )


def test_every_module_has_its_floor() -> None:
    assert {module.room for module in MODULES.values()} - set(FLOOR) == set()


def test_imports_point_down() -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in MODULES.values()
        for name in imported(ast.walk(module.tree))
        if (room := name.partition(".")[0]) != module.room
        and FLOOR[module.room] >= FLOOR[room]
        and (module.name, name) not in EXCEPTIONS
    ]
    assert wrong == []


def test_the_command_line_knows_the_daemon_by_its_socket_only() -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in MODULES.values()
        if module.room == "cli"
        for name in imported(ast.walk(module.tree))
        if name.partition(".")[0] not in SEEN_BY_CLI and (module.name, name) not in EXCEPTIONS
    ]
    assert wrong == []


def test_every_exception_is_still_needed() -> None:
    used = {
        (module.name, name)
        for module in MODULES.values()
        for name in imported(ast.walk(module.tree))
    }
    assert set(EXCEPTIONS) - used == set()


def test_modules_do_not_import_each_other_in_a_ring() -> None:
    graph = {
        module.name: set(imported(at_run_time(module.tree))) - {module.name}
        for module in MODULES.values()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises with the ring
    assert len(order) >= len(MODULES)


def test_no_import_is_relative() -> None:
    wrong = [
        f"{module.name} line {node.lineno}"
        for module in MODULES.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert wrong == []


@pytest.mark.parametrize("name", LIGHT)
def test_what_a_shell_starts_loads_nothing_heavy(name: str) -> None:
    script = (
        "import sys; before = set(sys.modules)\n"
        f"import {NAME}.{name}\n"
        "print(*{module.partition('.')[0] for module in set(sys.modules) - before})\n"
        f"print(*(module for module in sys.modules if module.startswith('{NAME}.')))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    packages, own = (set(line.split()) for line in ran.stdout.splitlines())
    assert packages & LIGHT[name] == set()
    assert {local(module).partition(".")[0] for module in own} <= SEEN_BY_CLI


def test_the_bridge_needs_only_the_standard_library() -> None:
    tree = MODULES["cli.connect"].tree
    names = {
        (node.names[0].name if isinstance(node, ast.Import) else node.module or "").partition(".")[
            0
        ]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert names - set(sys.stdlib_module_names) - {"__future__"} <= {NAME}


def test_no_file_has_outgrown_its_one_concept() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in every_python_file()
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


def test_every_module_says_what_it_owns() -> None:
    silent = [module.name for module in MODULES.values() if not ast.get_docstring(module.tree)]
    assert silent == []


def test_no_tracked_file_names_a_registry_or_somebodys_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("which files are tracked is known only in a clone")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True, text=True
    )
    wrong: list[str] = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        text = path.read_bytes().decode(errors="ignore") if path.is_file() else ""
        wrong += [f"{name} names {host}" for host in REGISTRIES if host in text]
        wrong += [f"{name} names {match.group()}..." for match in SOMEBODYS_PATH.finditer(text)]
    assert wrong == []


def test_every_exception_from_a_rule_says_why() -> None:
    folders = (PACKAGE, ROOT / "tests", ROOT / "guest")
    found = [
        f"{path.relative_to(ROOT)}: {match.group().strip()}"
        for folder in folders
        for path in folder.rglob("*.py")
        if "node_modules" not in path.parts
        for match in BARE.finditer(path.read_text())
    ]
    assert found == []
