"""Where things lie when nobody says otherwise: state, socket, configuration file.

Owns the answer that the daemon and its clients must agree on. The bridge and the command line read
it on every start, so this module takes nothing but the standard library; above it stand config and
the front ends.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "microvm-orchestrator"
PREFIX = "MICROVM_ORCHESTRATOR_"
SOCKET_VARIABLE = PREFIX + "SOCKET"
ADDRESS_VARIABLE = PREFIX + "ADDRESS"
TOKEN_VARIABLE = PREFIX + "TOKEN"
TOKEN_FILE_VARIABLE = PREFIX + "TOKEN_FILE"
CONFIG_VARIABLE = PREFIX + "CONFIG"

# Names in the state directory.
STORE_FILE = "store.db"
LOCK_FILE = "lock"
IMAGES = "images"
IMAGE_CACHE = "image-cache"
# Our mirrors of registered repositories, and what is kept of each run.
REPOS = "repos"
RUNS = "runs"
AGENTS = "agents"
# What runs have left behind, by what it holds.
ARTIFACTS = "artifacts"
# Trees on their way into a machine or out of one.
TRANSFERS = "transfers"
CACHES = "caches"
# What clusters are to be, each in a file of its name.
TOPOLOGIES = "topologies"
# What agents can be spawned as, likewise.
ROLES = "roles"
# Of which teams some are spawned, likewise.
TEAMS = "teams"
# Our key for machines that have an SSH server instead of our agent.
SSH = "ssh"

SYSTEM_STATE = Path("/var/lib") / NAME
SYSTEM_SOCKET = Path("/run") / NAME / "socket"
SYSTEM_CONFIG = Path("/etc") / NAME / "config.toml"


def _directory(env: Mapping[str, str], variable: str, otherwise: Path) -> Path:
    """Return the directory a variable of the XDG specification names; a relative one is invalid."""
    named = Path(env.get(variable, ""))
    return named if named.is_absolute() else otherwise


def _home(env: Mapping[str, str]) -> Path:
    return Path(env["HOME"]) if env.get("HOME") else Path.home()


def state_dir(env: Mapping[str, str]) -> Path:
    """Return where the daemon keeps its store: as a service, as root, or as a user."""
    if given := env.get("STATE_DIRECTORY"):  # systemd made it; the first is the one of this name
        return Path(given.split(":")[0])
    if os.geteuid() == 0:
        return SYSTEM_STATE
    return _directory(env, "XDG_STATE_HOME", _home(env) / ".local/state") / NAME


def socket(env: Mapping[str, str]) -> Path:
    """Return where the daemon listens: as a service, as root, or as a user."""
    if given := env.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0]) / "socket"
    if os.geteuid() == 0:
        return SYSTEM_SOCKET
    return _directory(env, "XDG_RUNTIME_DIR", state_dir(env)) / NAME / "socket"


def find_socket(env: Mapping[str, str]) -> Path:
    """Return where a client looks: what it was told, else its user's daemon, else the system's."""
    if given := env.get(SOCKET_VARIABLE):
        return Path(given)
    own = socket(env)
    return own if _is_there(own) or not _is_there(SYSTEM_SOCKET) else SYSTEM_SOCKET


def _is_there(path: Path) -> bool:
    """Tell whether somebody is there to be asked. Where we may not look, nobody is for us.

    `Path.exists` raises there, for a client whose HOME is another's.
    """
    return os.access(path, os.F_OK)


def find_config(env: Mapping[str, str]) -> Path | None:
    """Return the configuration file to read: what the environment names, else one that is there."""
    if given := env.get(CONFIG_VARIABLE):
        return Path(given)
    own = _directory(env, "XDG_CONFIG_HOME", _home(env) / ".config") / NAME / "config.toml"
    candidates = [SYSTEM_CONFIG] if os.geteuid() == 0 else [own, SYSTEM_CONFIG]
    return next((path for path in candidates if path.exists()), None)
