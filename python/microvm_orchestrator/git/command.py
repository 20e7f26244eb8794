"""The one way we run git: by name, with nothing of ours in its environment and no say for others.

A repository's own configuration can name programs: hooks, a file system monitor, filters, helpers
for transport and credentials. Here hooks and the monitor are off and no protocol is allowed, by
settings that outrank the repository's; the configuration of the system and of the user is not read.
Filters run only where work trees are read (`uncommitted.py`).

Git looks for the repository in `at` and nowhere above it. Whoever owns it is trusted to be the one
it was registered for: the daemon may be another user than the owner. Everything else in this room
stands above; below, proc.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microvm_orchestrator import proc

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path
    from typing import IO

# What answers at once on a healthy disk; a network disk that hangs is told as such.
QUICK_S = 60.0
# What walks or moves a whole history.
LONG_S = 1800.0

SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.untrackedCache": "false",
    # Another git of ours may hold the lock for a moment; a user's may hold it for longer.
    "core.filesRefLockTimeout": "5000",
    "core.packedRefsTimeout": "5000",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "safe.directory": "*",
}

_ENVIRONMENT = {
    "LC_ALL": "C",
    # No folder: what git would look for in it is not there.
    "HOME": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    # Outranks every `protocol.<name>.allow`; no protocol has this name.
    "GIT_ALLOW_PROTOCOL": "none",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a git that reads hostile bytes may use; the kernel ends one that wants more."""

    memory_bytes: int
    cpu_s: int
    # Of each file it writes.
    file_bytes: int

    def words(self) -> list[str]:
        return [
            "prlimit",
            f"--as={self.memory_bytes}",
            f"--cpu={self.cpu_s}",
            f"--fsize={self.file_bytes}",
            "--core=0",
            "--",
        ]


async def git(
    *words: proc.Argument,
    at: Path,
    stdin: bytes | IO[bytes] = b"",
    stdout: int | IO[bytes] = proc.PIPE,
    env: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    cap: int = proc.STDOUT_CAP,
    timeout_s: float = QUICK_S,
    ok: Collection[int] = (0,),
) -> proc.Finished:
    """Run git in the repository at `at`, with `env` and `settings` added to those of every git.

    Raises: CommandFailed when it ends with a status that is not in `ok`, or takes longer.
    """
    return await proc.run(
        [*(limits.words() if limits else ()), "git", *words],
        cwd=at,
        env=environment(at, settings) | dict(env or {}),
        stdin=stdin,
        stdout=stdout,
        cap=cap,
        timeout_s=timeout_s,
        statuses=ok,
    )


async def line(
    *words: proc.Argument,
    at: Path,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    ok: Collection[int] = (0,),
    timeout_s: float = QUICK_S,
) -> str:
    """Run git for the one line it says; nothing if it says nothing."""
    done = await git(*words, at=at, stdin=stdin, env=env, ok=ok, timeout_s=timeout_s)
    return done.stdout.decode(errors="replace").removesuffix("\n")


def environment(at: Path, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Make the whole environment of a git at `at`."""
    told = SETTINGS | dict(settings or {})
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        **_ENVIRONMENT,
        # Not excluded by this is the folder itself.
        "GIT_CEILING_DIRECTORIES": str(at.parent),
        "GIT_CONFIG_COUNT": str(len(told)),
        **{f"GIT_CONFIG_KEY_{number}": key for number, key in enumerate(told)},
        **{f"GIT_CONFIG_VALUE_{number}": value for number, value in enumerate(told.values())},
    }


def objects_at(own: Path, *others: Path) -> dict[str, str]:
    """Make what lets a git write objects to `own` and read those of `others` as well."""
    return {
        "GIT_OBJECT_DIRECTORY": str(own),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(_quoted(path) for path in others),
    }


def _quoted(path: Path) -> str:
    text = str(path)
    if ":" not in text and not text.startswith('"'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
