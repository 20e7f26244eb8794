"""Python's bytecode for the guest, compiled on the host by the guest's own Python.

Without it the guest would compile what it imports at every start; under emulation that takes two
seconds. It is never checked against the source (`unchecked-hash`): the root is read-only. What a
compiled file holds depends on what the process has compiled before, so the work is always cut into
the same number of equal lists, whatever the number of processors.
"""

from __future__ import annotations

import re
from functools import partial

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, proc
from microvm_orchestrator.images.progress import Progress, Stage
from microvm_orchestrator.images.toolbox import Toolbox, write_out
from microvm_orchestrator.images.tree import File, Slice, Tree
from microvm_orchestrator.together import together

_PYTHON = re.compile(r"usr/bin/python3\.[0-9]+")
_LISTS = 4
_COMPILE_S = 300.0

# Reads paths on stdin and says each on stdout; one that is no Python for this version is left out.
_SCRIPT = """\
import py_compile, sys
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for line in sys.stdin:
    path = line.rstrip("\\n")
    try:
        py_compile.compile(path, dfile="/" + path, doraise=True, invalidation_mode=mode)
    except py_compile.PyCompileError:
        continue
    print(path, flush=True)
"""


def find_python(tree: Tree) -> str:
    """Raises: PackageRefused when the packages bring no Python or several."""
    found = [path for path, node in tree if _PYTHON.fullmatch(path) and isinstance(node, File)]
    if len(found) != 1:
        raise errors.PackageRefused(f"the packages bring {len(found)} versions of Python")
    return found[0]


async def compile_python(
    tree: Tree, toolbox: Toolbox, folders: tuple[str, ...], progress: Progress
) -> str:
    """Add the bytecode of every Python file below these folders to the tree; return its tag.

    The toolbox holds the tree's Python and the sources. Raises: CommandFailed, PackageRefused.
    """
    python = find_python(tree)
    version = python.rpartition("python")[2]
    sources = [path for path, _ in tree if path.endswith(".py") and path.startswith(folders)]
    await anyio.to_thread.run_sync(write_out, tree, toolbox.folder, set(sources).__contains__)
    done: list[str] = []

    async def compile_list(paths: list[str]) -> None:
        command = toolbox.command(python, "-B", "-S", "-c", _SCRIPT)
        finished = await proc.run(
            command,
            timeout_s=_COMPILE_S,
            cap=1 << 24,
            cwd=toolbox.folder,
            env={
                "PYTHONHOME": str(toolbox.folder / "usr"),
                "PYTHONHASHSEED": "0",
                "LC_ALL": "C.UTF-8",
            },
            stdin="".join(f"{path}\n" for path in paths).encode(),
        )
        done.extend(finished.stdout.decode().splitlines())
        progress(Stage.COMPILE, len(done), len(sources))

    lists = [sources[first::_LISTS] for first in range(_LISTS)]
    await together([partial(compile_list, paths) for paths in lists])
    tag = f"cpython-{version.replace('.', '')}"
    for path in sorted(done):
        compiled = compiled_path(path, tag)
        place = toolbox.folder / compiled
        tree.put(compiled, File(Slice(place, 0, place.stat().st_size)))
    return tag


def compiled_path(path: str, tag: str) -> str:
    """Name the file that holds the bytecode of a source, as Python looks for it."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/__pycache__/{name.removesuffix('.py')}.{tag}.pyc"
