"""A guest whose kernel has netem, with what it takes to run our tests of networks inside it.

A host may have no netem, and no right to load it; the guest's own kernel has it as a module, which
comes from the same package as the kernel. Python's libraries are those of the tests themselves.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from machines import CACHE, ROOT
from microvm_orchestrator.host import boot_of
from microvm_orchestrator.images import kernel, packages
from microvm_orchestrator.images.build import KERNEL, ImageSpec, build
from microvm_orchestrator.images.progress import silent
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.images.unpack import merged, unpack
from microvm_orchestrator.machine.base import Boot

# Of the guest's Debian, whose Python the compiled libraries have to fit.
PYTHON = (3, 11)
MODULES = (
    "bridge",
    "nf_tables",
    "nft_meta_bridge",
    "nft_numgen",
    "nft_objref",
    "sch_htb",
    "sch_netem",
    "tun",
)
LIBRARIES = (
    *("_hypothesis_ftz_detector", "_hypothesis_globals", "_pytest", "annotated_types", "anyio"),
    *("hypothesis", "idna", "iniconfig", "packaging", "pluggy", "py", "pydantic", "pydantic_core"),
    *("pygments", "pyroute2", "pytest", "sortedcontainers", "structlog", "typing_extensions"),
    "typing_inspection",
)
TESTS = (
    *("conftest.py", "leaks.py", "frames.py", "lanes.py", "networking.py", "stamps.py"),
    *("contract/test_impaired.py", "unit/network/test_netem_accuracy.py"),
)


async def netem_boot() -> Boot:
    """What a guest starts from that has the programs which the kernel's networks need."""
    if sys.version_info[:2] != PYTHON:
        pytest.skip("compiled libraries of this Python do not fit the guest's")
    spec = ImageSpec("netem", ("nftables", "iproute2", "util-linux"))
    boot = boot_of(await build(spec, ImageStore(CACHE / "images"), CACHE / "build"))
    assert isinstance(boot, Boot)
    return boot


async def lay_out(folder: Path) -> None:
    """Put together what the guest gets."""
    await _modules(folder / "modules")
    await anyio.to_thread.run_sync(_libraries, folder / "python")
    for name in TESTS:
        target = folder / "tests" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, target)
    shutil.copy(ROOT / "pytest.toml", folder)


async def _modules(folder: Path) -> None:
    """Write the modules in the order that they can be loaded in."""
    found = await kernel_modules(MODULES, folder.with_name("scratch"))

    def write() -> None:
        folder.mkdir()
        for number, module in enumerate(found):
            (folder / f"{number:02}-{module.name}.ko").write_bytes(module.data)

    await anyio.to_thread.run_sync(write)


async def kernel_modules(names: Sequence[str], scratch: Path) -> list[kernel.Module]:
    """Read modules of the guest's kernel and those they need, in an order they can be loaded in."""
    index = await packages.open_index(CACHE / "build" / "apt", silent)
    named = await index.resolve([KERNEL])
    wanted = {name: each for name, each in named.items() if name.startswith("linux-image-6")}
    found = await index.describe(wanted)
    await anyio.Path(scratch).mkdir(parents=True)
    trees = await unpack(
        [(package, kernel.is_wanted) for package in found],
        CACHE / "build" / "packages",
        scratch,
        silent,
    )

    def read() -> list[kernel.Module]:
        modules = kernel.read_kernel(merged(trees)).modules(names)
        shutil.rmtree(scratch)
        return modules

    return await anyio.to_thread.run_sync(read)


def _libraries(folder: Path) -> None:
    folder.mkdir(parents=True)
    skipped = shutil.ignore_patterns("__pycache__", "node_modules", "web", "cli", "static")
    for name in (*LIBRARIES, "microvm_orchestrator"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        origin = Path(spec.origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, folder / name, ignore=skipped)
        else:
            shutil.copy(origin, folder)
