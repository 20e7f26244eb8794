"""Nix on the flake of this repository: `flake-check` beside this file lays out what it takes in."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FLAKE_CHECK = Path(__file__).with_name("flake-check")
# The first time a Nix is fetched and unpacked.
PATIENCE_S = 600


@dataclass(frozen=True, slots=True)
class Flake:
    """A flake, and where the sources of its inputs lie."""

    sources: Path
    folder: Path = ROOT

    def check(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `nix flake check`."""
        return self._ran([str(self.folder), "--", *words])

    def nix(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a subcommand of nix in the flake's folder."""
        return self._ran(["--run", str(self.folder), "--", *words])

    def parse(self, files: Sequence[Path]) -> subprocess.CompletedProcess[str]:
        """Let Nix read files: it finds mistakes of syntax, and names that nobody defines."""
        return self._run_of_nix("nix-instantiate", "--parse", *files)

    def lock(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """Let Nix write the lock of a flake, by what this one takes in."""
        return self._run_of_nix("nix", "flake", "lock", "--offline", f"path:{folder}")

    def evaluate(self, attribute: str, apply: str = "it: it") -> Any:
        """Read an output of the flake. Fails with what Nix says."""
        ran = self.nix("eval", "--json", f".#{attribute}", "--apply", apply)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def _run_of_nix(self, program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        # Whoever comes first unpacks Nix, and puts into its store what the flake takes in.
        ready = self.nix("flake", "metadata")
        assert ready.returncode == 0, ready.stderr
        return _run([_nix_home() / "bin" / program, *words], {"NIX_REMOTE": ""})

    def _ran(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return _run([FLAKE_CHECK, *words], {"NIX_SOURCES": str(self.sources)})


def _nix_home() -> Path:
    return Path(os.environ.get("NIX_HOME", Path.home() / ".cache/nix-for-checks"))


def _run(
    words: Sequence[str | Path], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
