"""What a run leaves behind beside its commits: files of its guest, a patch, its machine's console.

The guest is asked for names by the patterns, each name is judged here, and each file travels as any
file of a guest does, one after the other, into the artifacts. Whatever goes wrong with one is told
beside those that came, and no run fails by it. Above are the steps of a run; below, the artifacts
and the shell into the machine.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.lifecycle.guest import REPO, WORKSPACE
from microvm_orchestrator.machine import console
from microvm_orchestrator.machine.channel.stream import printable
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.model.artifact import (
    MAX_ARTIFACTS,
    MAX_LEFT_OUT,
    MAX_NAME,
    OWN_NAMES,
    Artifact,
    ArtifactKind,
    Glob,
    LeftOut,
    find_media_type,
)
from microvm_orchestrator.model.records import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm_orchestrator.artifacts import Artifacts
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.machine.shell import Shell
    from microvm_orchestrator.machines import Machines

_log = log.get(__name__)

# The file that the work tree's rest comes in, in a run's folder.
PATCH = "rest.patch"
# For all of it: what takes longer does not come.
_COLLECT_S = 600.0
_LIST_S = 120.0
# Of a machine that has just ended, say.
_CONSOLE_S = 10.0
_CONSOLE_MOST = 2 * console.KEPT
# Of the names that a guest gives; and of those that are told and do not come.
_NAMES_MOST = 1 << 20
_ODD_MOST = 1 << 14
# Folders deeper than that are not looked into.
_DEPTH = 64
_REASON = 300
_SHOWN = 200

# Words: where names are relative to, how many bytes of names, which types; then of each pattern
# where to look, how deep, what to pass by, and two patterns of which a path fits one.
_LIST = """\
set -f
cd "$1" || exit 1
most=$2 types=$3
shift 3
while [ $# -gt 4 ]; do
    # In words of its own: what is there is not what is asked for.
    find "$1" -maxdepth "$2" -xdev -name "$3" -prune -o \\
        \\( -path "$4" -o -path "$5" \\) $types -print0
    shift 5
done 2>/dev/null | head -c "$most"
"""
_FILES = "-type f"
_OTHERS = "! -type f ! -type d"
# A name that nothing has.
_NOTHING = ".no.such.name."


@dataclass(slots=True)
class Gathered:
    """What came of a guest, and what did not."""

    artifacts: list[Artifact] = field(default_factory=list[Artifact])
    left_out: list[LeftOut] = field(default_factory=list[LeftOut])
    # How much more was left out than is told.
    untold: int = 0

    def leave_out(self, name: bytes | str, reason: str) -> None:
        if len(self.left_out) >= MAX_LEFT_OUT:
            self.untold += 1
            return
        encoded = name if isinstance(name, bytes) else name.encode()
        told = LeftOut(name=printable(encoded)[:_SHOWN], reason=reason[:_REASON])
        self.left_out.append(told)

    def all_left_out(self) -> list[LeftOut]:
        more = LeftOut(name="*", reason=f"and {self.untold} more") if self.untold else None
        return self.left_out if more is None else [*self.left_out, more]


async def collect(run: Run, artifacts: Artifacts, machine: RunningMachine, folder: Path) -> None:
    """Keep what was asked for, and the patch of what was not committed; write down what there is.

    To be called again for a run that was cut off: what has come already comes anew.
    """
    gathered = Gathered()
    await _keep_patch(run, artifacts, folder / PATCH, gathered)
    if run.spec.artifacts:
        with anyio.move_on_after(_COLLECT_S) as patience:
            try:
                shell = await machine.reached()
                root = REPO if run.spec.repo else WORKSPACE
                globs = [Glob(pattern) for pattern in run.spec.artifacts]
                await gather(shell, root, globs, artifacts, run.record.run_id, gathered)
            except errors.OrchestratorError as error:
                gathered.leave_out("*", error.message)
        if patience.cancelled_caught:
            gathered.leave_out("*", f"what had not come within {_COLLECT_S:g} s did not come")
    await _learn(run, gathered)


async def gather(
    shell: Shell,
    root: str,
    globs: Sequence[Glob],
    artifacts: Artifacts,
    run_id: str,
    gathered: Gathered,
) -> None:
    """Bring the files that fit patterns, each by its name, into the artifacts of a run.

    Raises: MachineFailed when the guest does not go on; what came before it is in `gathered`.
    """
    names = await _names(shell, root, globs, gathered)
    for name in names[MAX_ARTIFACTS:]:
        gathered.leave_out(name, f"a run may have {MAX_ARTIFACTS} artifacts")
    for name in names[:MAX_ARTIFACTS]:
        path = name if name.startswith("/") else f"{root}/{name}"
        try:
            async with shell.get(path, max_size=artifacts.quotas.file) as file:
                size = file.size
                digest = await artifacts.add(run_id, size, file)
        except (errors.TooLarge, errors.NotFound, errors.GuestRefused, errors.InvalidInput) as why:
            gathered.leave_out(name, why.message)
            continue
        # What is the run's own has that name alone.
        told = f"./{name}" if name in OWN_NAMES.values() else name
        gathered.artifacts.append(
            Artifact(name=told, size=size, digest=digest, media_type=find_media_type(name))
        )


async def keep_console(run: Run, artifacts: Artifacts, machines: Machines) -> None:
    """Keep the end of what the machine of a run wrote to its console, before it is put away."""
    if run.record.machine_id is None:
        return
    with anyio.move_on_after(_CONSOLE_S, shield=True), suppress(errors.NotFound):
        machine = await machines.get(run.record.machine_id, SYSTEM)
        path = machines.console(machine)
        try:
            begin = max(0, await anyio.to_thread.run_sync(console.size, path) - _CONSOLE_MOST)
            _, said = await anyio.to_thread.run_sync(console.read, path, begin, _CONSOLE_MOST)
            if said:
                digest = await artifacts.add_bytes(run.record.run_id, said, bounded=False)
                await _learn(run, Gathered([_own(ArtifactKind.CONSOLE, len(said), digest)]))
        except (errors.OrchestratorError, OSError) as error:
            _log.error("run_console_lost", run=run.record.run_id, reason=str(error))


async def _keep_patch(run: Run, artifacts: Artifacts, path: Path, gathered: Gathered) -> None:
    with suppress(errors.NotFound):
        try:
            size, digest = await artifacts.add_file(run.record.run_id, path, bounded=False)
        except errors.Unavailable as error:  # it stays where it is
            gathered.leave_out(PATCH, error.message)
            return
        gathered.artifacts.append(_own(ArtifactKind.PATCH, size, digest))
        # Its content has a name in the artifacts now.
        await anyio.Path(path).unlink(missing_ok=True)


def _own(kind: ArtifactKind, size: int, digest: str) -> Artifact:
    name = OWN_NAMES[kind]
    return Artifact(
        name=name, size=size, digest=digest, kind=kind, media_type=find_media_type(name)
    )


async def _learn(run: Run, gathered: Gathered) -> None:
    """Add to what is written down of a run; of one name the last counts."""
    known = {each.name: each for each in run.record.artifacts}
    known |= {each.name: each for each in gathered.artifacts}
    artifacts = sorted(known.values(), key=lambda each: each.name)
    left_out = gathered.all_left_out() or run.record.left_out
    if artifacts != run.record.artifacts or left_out != run.record.left_out:
        await run.learn("artifacts", artifacts=artifacts, left_out=left_out)


# Names


async def _names(shell: Shell, root: str, globs: Sequence[Glob], gathered: Gathered) -> list[str]:
    """Ask for the files that fit, and give their names in order; what cannot come is told.

    Raises: MachineFailed.
    """
    files = await _listed(shell, root, globs, _FILES, _NAMES_MOST)
    if len(files) >= _NAMES_MOST:
        gathered.leave_out("*", "more files may fit than are listed: these come from a part of all")
    fitting = partial(_fitting, files, globs)
    found, odd, met = await anyio.to_thread.run_sync(fitting)
    for name in odd:
        gathered.leave_out(name, "its name is too long, or no plain text")
    others = await _listed(shell, root, globs, _OTHERS, _ODD_MOST)
    links, _, linked = await anyio.to_thread.run_sync(_fitting, others, globs)
    for name in links:
        gathered.leave_out(name, "it is a link or a device, and no file")
    for at, glob in enumerate(globs):
        if at not in met | linked:
            gathered.leave_out(glob.pattern, "no file fits it")
    return found


async def _listed(shell: Shell, root: str, globs: Sequence[Glob], types: str, most: int) -> bytes:
    words = [root, str(most), types]
    for glob in globs:
        # Git's own folder is meant by who names it only.
        passed_by = _NOTHING if ".git" in glob.pattern else ".git"
        depth = _DEPTH if glob.depth is None else min(glob.depth, _DEPTH)
        words += [glob.folder, str(depth), passed_by, *glob.wide]
    argv = ["/bin/sh", "-c", _LIST, "sh", *words]
    done = await shell.exec(Command(argv, timeout_s=_LIST_S), output_cap=most)
    return done.stdout[:most]


def _fitting(listed: bytes, globs: Sequence[Glob]) -> tuple[list[str], list[bytes], set[int]]:
    """Take apart what a guest has listed: names that fit, those that are no names, and what met.

    A guest may say anything here; what comes back is a path that some pattern asks for.
    """
    found: set[str] = set()
    odd: set[bytes] = set()
    met: set[int] = set()
    # What the end was cut off from is no name.
    for raw in listed.split(b"\0")[:-1]:
        name = _name(raw)
        if name is None:
            odd.add(raw)
            continue
        fits = [at for at, glob in enumerate(globs) if glob.fits(name)]
        if fits:
            found.add(name)
            met.update(fits)
    return sorted(found), sorted(odd)[: MAX_LEFT_OUT + 1], met


def _name(raw: bytes) -> str | None:
    """Give the path that a guest names, as we write it; None where it is none that we would."""
    try:
        name = raw.decode().removeprefix("./")
    except UnicodeDecodeError:
        return None
    parts = name.removeprefix("/").split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return None
    return name if len(name) <= MAX_NAME and name.isprintable() else None
