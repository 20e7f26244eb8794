"""Where the judges are installed, and how one is run."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
NODE_TOOLS = ROOT / "tests/judges/node_modules/.bin"
PYTHON_TOOLS = ROOT / ".venv-judges/bin"
CLAUDE = ROOT / "tests/judges/node_modules/@anthropic-ai/claude-code-linux-x64/claude"
_CODEX = ROOT / "tests/judges/node_modules/@openai/codex-linux-x64"
CODEX = _CODEX / "vendor/x86_64-unknown-linux-musl/bin/codex"
OPENCODE = ROOT / "tests/judges/node_modules/opencode-linux-x64-baseline/bin/opencode"
# Some judges start slowly on a busy machine; only a hung one is cut off.
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Verdict:
    status: int
    said: str
    complained: str


async def judged(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Verdict:
    """Run a judge to its end, on the node of our own environment."""
    path = f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    with anyio.fail_after(PATIENCE_S):
        done = await anyio.run_process(
            command,
            stdin=subprocess.DEVNULL,
            check=False,
            cwd=cwd,
            env={**os.environ, "PATH": path, **(env or {})},
        )
    return Verdict(done.returncode, done.stdout.decode(), done.stderr.decode())
