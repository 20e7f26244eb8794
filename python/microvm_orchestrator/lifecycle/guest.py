"""What a run has in its guest: where its work tree lies, and how commits get there and back.

Git runs in the guest, over a tree that only the guest writes; what comes back is a file of bytes
that the git room takes apart. Names and texts travel as words of a command, never inside a script.
Above are the steps of a run; below, the shell into a machine.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.git.held import Room
from microvm_orchestrator.machine.shell import Command

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.machine.shell import Finished, Shell
    from microvm_orchestrator.model.run import InputFile, Rest

WORKSPACE = "/workspace"
# Of whoever runs the program: what it keeps between turns, and files of ours.
HOME = f"{WORKSPACE}/home"
REPO = f"{WORKSPACE}/repo"
# Where a guest has the disk `opt-history`.
_HISTORY = "/opt/history"
_IN = f"{WORKSPACE}/.in.bundle"
_OUT = f"{WORKSPACE}/.out.bundle"
_PATCH = f"{WORKSPACE}/.rest.patch"
# Of a tree with a long history on a slow disk; what hangs longer does not end by itself.
_GIT_S = 900.0
_QUICK_S = 30.0
# What is taken from a guest at most: commits as a bundle, and changes as a patch. What would be
# refused afterwards does not travel.
_BUNDLE_MOST = Room().bundle_bytes
_PATCH_MOST = 64 << 20
_PIECE = 1 << 18
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

# A process is slow to start under emulation: no git is asked to write what a line can.
_BEGIN = """\
set -eu
rm -rf "$1"
mkdir -p "$1"
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=core.hooksPath GIT_CONFIG_VALUE_0=/dev/null
git init -q --object-format="$2" --initial-branch="$3" "$1"
cd "$1"
printf '[user]\\n\\tname = %s\\n\\temail = %s\\n[gc]\\n\\tauto = 0\\n' "$4" "$5" >>.git/config
if [ -n "$9" ]; then
    echo "$9/objects" >.git/objects/info/alternates
    git update-ref refs/microvm/history "$(cat "$9/commit")"
fi
if [ -n "$6" ]; then
    git fetch -q "$6" "$7"
    rm "$6"
fi
if [ -n "$8" ]; then
    git reset -q --hard "$8"
fi
if [ -n "$9" ]; then
    git update-ref -d refs/microvm/history
fi
"""

# In an image of the user's a disk may be mounted elsewhere, or not at all.
_HAS_HISTORY = """\
[ "$(cat "$1/commit" 2>/dev/null)" = "$2" ] && [ -d "$1/objects" ] && echo yes
:
"""

# The text is looked at, not the flake: to evaluate one takes a minute, and may fetch what it likes.
_DEVSHELL = """\
flake=no nix=no
grep -qs devShell "$1/flake.nix" && flake=yes
command -v nix >/dev/null && nix=yes
echo "$flake $nix"
"""

# In the middle of a rebase there is none; where its commits come does not depend on it.
_BRANCH = """\
cd "$1"
git -c core.hooksPath=/dev/null checkout -q -b "$2" || :
"""

# A git that cannot say what is there must not be taken for one that finds nothing: no pipe hides
# how it ended.
_END = """\
set -eu
repo=$1 base=$2 rest=$3 message=$4 out=$5 patch=$6 kept=
rm -f "$out" "$patch"
cd "$repo"
left=none
git status --porcelain --untracked-files=normal >"$out"
[ -s "$out" ] && changed=yes || changed=
rm "$out"
if [ "$changed" ]; then
    case $rest in
    commit)
        git add -A
        git -c core.hooksPath=/dev/null commit -q --no-verify -m "$message"
        left=commit
        ;;
    patch | beside)
        cp .git/index ../.rest.index 2>/dev/null || :
        export GIT_INDEX_FILE=../.rest.index
        git add -A
        tree=$(git write-tree)
        unset GIT_INDEX_FILE
        rm -f ../.rest.index
        if [ "$rest" = beside ]; then
            head=$(git rev-parse -q --verify HEAD^{commit} || :)
            kept=$(git commit-tree ${head:+-p "$head"} -m "$message" "$tree")
        else
            against=$(git rev-parse -q --verify HEAD^{tree} || git hash-object -t tree /dev/null)
            git diff --binary --no-color --no-ext-diff "$against" "$tree" >"$patch"
        fi
        left=$rest
        ;;
    *) left=drop ;;
    esac
fi
tip=${kept:-$(git rev-parse -q --verify HEAD^{commit} || :)}
if [ -n "$tip" ] && [ -z "$(git rev-list -n 1 "$tip" ${base:+"^$base"})" ]; then
    tip=
fi
if [ -n "$tip" ]; then
    git update-ref refs/microvm/out "$tip"
    if [ -n "$base" ]; then
        git bundle create -q "$out" refs/microvm/out "^$base"
    else
        git bundle create -q "$out" refs/microvm/out
    fi
fi
printf '%s %s\\n' "${tip:-none}" "$left"
"""


@dataclass(frozen=True, slots=True)
class Tree:
    """A work tree as it is to be laid out."""

    # None: it begins empty.
    commit: str | None
    # What of it is sent, and under which name; None where a history has it all.
    bundle: Path | None
    ref: str
    branch: str
    object_format: str
    # Whether what is not in the bundle is in the history that the machine has.
    with_history: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """What a program left behind in its work tree, as the guest tells it."""

    # None where there is nothing that the base has not.
    tip: str | None
    rest: str


async def begin(shell: Shell) -> None:
    """Make the folders that everything of a run is in."""
    done = await shell.exec(Command(["/bin/mkdir", "-p", WORKSPACE, HOME], timeout_s=_QUICK_S))
    if done.exit.code != 0:
        raise errors.MachineFailed(f"{HOME} cannot be made in the machine")


async def has_history(shell: Shell, commit: str) -> bool:
    """Tell whether the history of a commit lies where a disk of ours has it."""
    done = await _script(shell, _HAS_HISTORY, _HISTORY, commit)
    return done.stdout.strip() == b"yes"


async def begin_tree(shell: Shell, tree: Tree) -> None:
    """Lay out a work tree; one that is there already begins anew.

    Raises: MachineFailed when git in the guest cannot.
    """
    if tree.bundle is not None:
        path = anyio.Path(tree.bundle)
        size = (await path.stat()).st_size
        async with _pieces(tree.bundle) as pieces:
            await shell.put(_IN, pieces, size=size, parents=True)
    author = ("microvm-orchestrator agent", "agent@machine.invalid")
    bundle = "" if tree.bundle is None else _IN
    history = _HISTORY if tree.with_history else ""
    words = (REPO, tree.object_format, tree.branch, *author, bundle, tree.ref, tree.commit or "")
    await _script(shell, _BEGIN, *words, history)


async def begin_branch(shell: Shell, branch: str) -> None:
    """Let the work tree be on a new branch, where that can be; nothing else is changed."""
    await _script(shell, _BRANCH, REPO, branch)


async def put_files(shell: Shell, files: list[InputFile]) -> None:
    """Write the files that a task brings along; relative ones into the work tree."""
    for file in files:
        path = file.path if file.path.startswith("/") else f"{REPO}/{file.path}"
        content = (file.text or "").encode() if file.base64 is None else _decoded(file)
        await shell.put(path, content, mode=file.mode, parents=True)


async def has_devshell(shell: Shell) -> tuple[bool, bool]:
    """Tell whether there is a flake with a devShell in the work tree, and a Nix to enter it."""
    done = await _script(shell, _DEVSHELL, REPO)
    flake, _, nix = done.stdout.decode(errors="replace").strip().partition(" ")
    return flake == "yes", nix == "yes"


async def end_tree(
    shell: Shell, base: str | None, rest: Rest | Literal["beside"], message: str
) -> Left:
    """Make what was done ready to be fetched.

    With `beside` what is not committed is fetched as a commit that the work tree does not come to
    stand on: whoever works there may go on. Raises: MachineFailed.
    """
    done = await _script(shell, _END, REPO, base or "", rest, message, _OUT, _PATCH)
    tip, _, left = done.stdout.decode(errors="replace").strip().partition(" ")
    if left not in {"none", "commit", "patch", "drop", "beside"}:
        raise errors.ProtocolBroken("the guest did not say what is in the work tree")
    if tip == "none":
        return Left(None, left)
    if not _OID.fullmatch(tip):
        raise errors.ProtocolBroken("the guest names a commit that has no such name")
    return Left(tip, left)


async def fetch_bundle(shell: Shell, to: Path) -> None:
    """Raises: TooLarge, NotFound."""
    await _fetch(shell, _OUT, to, _BUNDLE_MOST)


async def fetch_patch(shell: Shell, to: Path) -> None:
    """Raises: TooLarge, NotFound."""
    await _fetch(shell, _PATCH, to, _PATCH_MOST)


async def _fetch(shell: Shell, path: str, to: Path, max_size: int) -> None:
    async with shell.get(path, max_size=max_size) as file, await anyio.open_file(to, "xb") as out:
        async for piece in file:
            await out.write(piece)


async def _script(shell: Shell, script: str, *words: str) -> Finished:
    argv = ["/bin/sh", "-c", script, "sh", *words]
    done = await shell.exec(Command(argv, timeout_s=_GIT_S))
    if done.exit.code != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise errors.MachineFailed(
            "git in the machine did not succeed" + (f": {' / '.join(said)}" if said else "")
        )
    return done


@asynccontextmanager
async def _pieces(path: Path) -> AsyncGenerator[AsyncGenerator[bytes]]:
    async with await anyio.open_file(path, "rb") as file:

        async def read() -> AsyncGenerator[bytes]:
            while piece := await file.read(_PIECE):
                yield piece

        yield read()


def _decoded(file: InputFile) -> bytes:
    try:
        return base64.b64decode(file.base64 or "", validate=True)
    except ValueError:
        raise errors.InvalidInput(f"file {file.path} is not written in base64") from None
