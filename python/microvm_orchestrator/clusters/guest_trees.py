"""Files brought into a guest's folder, and compared there with what they should be.

What a guest has is told by its own sha256sum: that is its word, and says whether the way there was
good, not whether the guest is. Nothing has its place before all of it has been compared. Above are
the artifacts and sources of clusters; below, the way into the guest.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine.shell import Command, Finished, Shell
from microvm_orchestrator.model.artifact import PREFIX
from microvm_orchestrator.model.artifact_tree import TreeFile

# A guest may have a slow disk, and be emulated.
STEP_S = 900.0
_OUTPUT_CAP = 1 << 16
# Beside its digest, what a line about a file has.
_LINE = 80
_SLACK = 1 << 20
_SUM = re.compile(rb"(\\?)([0-9a-f]{64}) [ *]\./(.+)")
_TAIL = 2000

# Gives an empty folder to lay files out in for a while.
Stage = Callable[[], AbstractAsyncContextManager[Path]]
LayOut = Callable[[Sequence[TreeFile], Path], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Brought:
    """What it took to have files in a guest."""

    sent_files: int
    sent_bytes: int
    # It was all there.
    skipped: bool = False


async def script(
    shell: Shell,
    text: str,
    *words: str,
    stdin: bytes = b"",
    cap: int = _OUTPUT_CAP,
    timeout_s: float = STEP_S,
) -> Finished:
    """Run a script with words as its $1, $2, … to whatever end."""
    command = Command(["/bin/sh", "-c", text, "sh", *words], timeout_s=timeout_s)
    return await shell.exec(command, stdin=stdin, output_cap=cap)


async def must(shell: Shell, what: str, text: str, *words: str, stdin: bytes = b"") -> Finished:
    """Run a script that has to succeed. Raises: GuestRefused with what it complained of."""
    ran = await script(shell, text, *words, stdin=stdin)
    if ran.exit.code != 0:
        raise errors.GuestRefused(f"{what}: {tail(ran.stderr or ran.stdout)}")
    return ran


def tail(said: bytes) -> str:
    text = said[-_TAIL:].decode(errors="replace").strip()
    return "".join(sign if sign.isprintable() else " " for sign in text) or "it said nothing"


async def sums(shell: Shell, folder: str, expected: Sequence[TreeFile]) -> dict[str, str] | None:
    """Tell the digests of all files below a folder; None when there is more than is expected."""
    cap = sum(len(each.path.encode()) + _LINE for each in expected) + _SLACK
    text = 'cd "$1" 2>/dev/null || exit 0\nfind . -type f -exec sha256sum {} +\n'
    return read_sums(await script(shell, text, folder, cap=cap))


async def sums_of(shell: Shell, folder: str, files: Sequence[TreeFile]) -> dict[str, str]:
    """Tell the digests of those of these files that a folder has."""
    cap = sum(len(each.path.encode()) + _LINE for each in files) + _SLACK
    text = 'cd "$1" 2>/dev/null || exit 0\nxargs -0 sha256sum 2>/dev/null\n:\n'
    ran = await script(shell, text, folder, stdin=_listed(files), cap=cap)
    return read_sums(ran) or {}


def read_sums(ran: Finished) -> dict[str, str] | None:
    """Read what a guest's sha256sum has said; None when it is not that, or not all of it."""
    if ran.exit.code != 0 or ran.truncated:
        return None
    found: dict[str, str] = {}
    for line in ran.stdout.splitlines():
        match = _SUM.fullmatch(line)
        if match is None:
            return None
        path = match[3].replace(b"\\\\", b"\\") if match[1] else match[3]
        found[path.decode(errors="surrogateescape")] = PREFIX + match[2].decode()
    return found


def _listed(files: Sequence[TreeFile]) -> bytes:
    return b"".join(b"./" + each.path.encode() + b"\0" for each in files)


def missing(files: Sequence[TreeFile], found: dict[str, str]) -> list[TreeFile]:
    return [each for each in files if found.get(each.path) != each.digest]


_READY = """set -e
mkdir -p "$1"
cd "$1"
for left in ./.*.part; do [ ! -e "$left" ] || rm -rf "$left"; done
ls -1
"""
_BEGIN = """set -e
cd "$1"
mkdir -m 755 "$2"
[ -z "$3" ] || cp -R "$3/." "$2"
cd "$2"
find . ! -type d ! -type f -exec rm -f {} +
"""
_DROP = 'cd "$1" && xargs -0 rm -f\n'
_MODES = """set -e
cd "$1"
find . -type d -exec chmod 755 {} +
find . -type f -exec chmod 644 {} +
[ -z "$2" ] || xargs -0 chmod 755
"""
_PLACE = """set -e
cd "$1"
if [ -e "$3" ] || [ -L "$3" ]; then mv "$3" "$2.old.part"; fi
mv "$2" "$3"
rm -rf "$2.old.part"
sync
"""


async def bring_tree(
    shell: Shell,
    base: str,
    name: str,
    files: Sequence[TreeFile],
    lay_out: LayOut,
    stage: Stage,
    *,
    others: Callable[[str], Awaitable[Sequence[TreeFile] | None]],
    force: bool = False,
) -> Brought:
    """Let `base`/`name` hold these files and no others, or change nothing of it.

    What another tree in `base` has of them, by `others`, is copied there. Raises: GuestRefused, and
    as `Shell.put_tree`.
    """
    ready = await must(shell, f"{base} cannot be used", _READY, base)
    whole = {each.path: each.digest for each in files}
    if not force and await sums(shell, f"{base}/{name}", files) == whole:
        return Brought(0, 0, skipped=True)
    part = f".{name}.part"
    async with _removed(shell, base, part):
        source, has = await _nearest(ready.stdout, name, files, others)
        await must(shell, "nothing can be written", _BEGIN, base, part, source)
        found = await sums(shell, f"{base}/{part}", [*files, *has]) or {}
        excess = [path for path in found if whole.get(path) != found[path]]
        if excess:
            listed = b"".join(
                b"./" + path.encode(errors="surrogateescape") + b"\0" for path in excess
            )
            await must(shell, "nothing can be removed", _DROP, f"{base}/{part}", stdin=listed)
        lacking = missing(files, found)
        await send(shell, f"{base}/{part}", lacking, lay_out, stage)
        programs = [each for each in files if each.executable]
        words = (f"{base}/{part}", "some" if programs else "")
        await must(shell, "modes cannot be set", _MODES, *words, stdin=_listed(programs))
        if await sums(shell, f"{base}/{part}", files) != whole:
            raise errors.GuestRefused(
                f"{base}/{name} was not made, as the guest does not have what was sent"
            )
        await must(shell, f"{name} cannot have its name", _PLACE, base, part, name)
    return Brought(len(lacking), sum(each.size for each in lacking))


async def send(
    shell: Shell, folder: str, files: Sequence[TreeFile], lay_out: LayOut, stage: Stage
) -> None:
    """Write these files below a folder."""
    if not files:
        return
    async with stage() as staged:
        await lay_out(files, staged)
        await shell.put_tree(staged, folder)


async def _nearest(
    listed: bytes,
    name: str,
    files: Sequence[TreeFile],
    others: Callable[[str], Awaitable[Sequence[TreeFile] | None]],
) -> tuple[str, Sequence[TreeFile]]:
    """Find the tree beside it that has most of these files; none that has less than a half."""
    wanted = {(each.path, each.digest) for each in files}
    best: tuple[str, Sequence[TreeFile]] = ("", ())
    most = sum(each.size for each in files) // 2
    names = [line.decode(errors="replace") for line in listed.splitlines()]
    for other in [each for each in names if each != name][:_NEIGHBOURS]:
        has = await others(other)
        if has is None:
            continue
        shared = sum(each.size for each in has if (each.path, each.digest) in wanted)
        if shared > most:
            best, most = (other, has), shared
    return best


# More trees than this in a guest are not looked at for what they share.
_NEIGHBOURS = 32


@asynccontextmanager
async def _removed(shell: Shell, base: str, part: str) -> AsyncGenerator[None]:
    """Take a half-written folder away; where that cannot be, the next one does it."""
    try:
        yield
    except BaseException:
        with anyio.move_on_after(_CLEAN_S, shield=True):
            with suppress(errors.OrchestratorError):
                await script(shell, 'cd "$1" && rm -rf "$2"\n', base, part)
        raise


_CLEAN_S = 10.0


def quoted(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))
