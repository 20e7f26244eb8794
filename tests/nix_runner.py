"""Runner directories by the real microvm.nix, where its sources and a Nix are at hand.

NIX_SOURCES names a folder of git repositories, or of folders with one called `repo` in each, among
them microvm.nix and nixpkgs.lib. Nothing is fetched, and the store is one of the test's own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from machines import Rig, qemu_rig
from microvm_orchestrator.machine.base import Boot, MachineSpec
from microvm_orchestrator.runner import Runner, read
from standin_runner import NAME, kernel_words

EXPRESSION = Path(__file__).with_name("runner.nix")
MICROVM, LIB = "microvm.nix", "nixpkgs.lib"
# Building takes a quarter of a second; a busy host has its own idea of that.
BUILD_S = 120
SETTINGS = {"sandbox": "false", "substitute": "false", "build-users-group": ""}


def wanted() -> bool:
    return "NIX_SOURCES" in os.environ


def why_not() -> str | None:
    """Tell why no runner can be made here."""
    if not wanted():
        return "NIX_SOURCES does not say where the sources of microvm.nix are"
    missing = [name for name in (MICROVM, LIB) if _repository(name) is None]
    if missing:
        return f"NIX_SOURCES has no repository of {', '.join(missing)}"
    return None if shutil.which("nix-build") else "there is no nix-build"


@dataclass(frozen=True, slots=True)
class Nix:
    """A store of our own, and the sources laid out for the expression."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What lets a Nix use this store, and nothing else of the host."""
        own = {name: str(self.folder / name.lower()) for name in ("STORE", "STATE", "LOG", "CONF")}
        settings = "\n".join(f"{name} = {value}" for name, value in SETTINGS.items())
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "NIX_REMOTE": "",
            "NIX_CONFIG": settings,
            "NIX_STORE_DIR": own["STORE"],
            "NIX_STATE_DIR": own["STATE"],
            "NIX_LOG_DIR": own["LOG"],
            "NIX_CONF_DIR": own["CONF"],
        }

    def describe(self, spec: MachineSpec, params: str) -> None:
        """Say which guest the next runner is for."""
        (root,) = spec.parts.disks
        guest = {
            "name": NAME,
            "memory_mib": spec.memory_mib,
            "vcpus": spec.vcpus,
            "folder": str(spec.parts.kernel.parent),
            "store": str(root.path),
            "params": params.split(" "),
        }
        (self.folder / "guest.json").write_text(json.dumps(guest))

    def build(self) -> Path:
        ran = subprocess.run(
            ["nix-build", "--no-out-link", "--quiet", self.folder / "default.nix"],
            env=self.environment,
            stdout=subprocess.PIPE,
            check=True,
            timeout=BUILD_S,
            text=True,
        )
        return Path(ran.stdout.strip())

    def collect_garbage(self) -> None:
        """Remove from the store what nothing keeps."""
        words = ["nix-store", "--gc", "--quiet"]
        subprocess.run(
            words, env=self.environment, stdout=subprocess.DEVNULL, check=True, timeout=BUILD_S
        )


def lay_out(folder: Path) -> Nix:
    """Put the sources where the expression looks for them."""
    folder.mkdir(parents=True)
    shutil.copy(EXPRESSION, folder / "default.nix")
    for name, place in ((MICROVM, "microvm"), (LIB, "nixpkgs")):
        repository = _repository(name)
        assert repository
        (folder / place).mkdir()
        archive = subprocess.run(
            ["git", "-C", repository, "archive", "HEAD", "lib"], check=True, stdout=subprocess.PIPE
        )
        unpack = ["tar", "-x", "-C", folder / place]
        subprocess.run(unpack, check=True, input=archive.stdout)
    return Nix(folder)


def nix_rig(state_dir: Path, image: Boot, tsc_khz: int) -> Rig:
    """Machines whose runners microvm.nix has made."""
    nix = lay_out(state_dir / "nix")

    def runner(spec: MachineSpec) -> Runner:
        nix.describe(spec, kernel_words(spec, tsc_khz))
        return read(nix.build())

    return replace(qemu_rig(state_dir, image), runner=runner, offers=frozenset({"pause", "attach"}))


def _repository(name: str) -> Path | None:
    sources = Path(os.environ["NIX_SOURCES"])
    for path in sorted([*sources.glob(f"*{name}*/repo"), *sources.glob(f"*{name}*")]):
        if (path / "HEAD").exists() or (path / ".git").exists():
            return path
    return None
