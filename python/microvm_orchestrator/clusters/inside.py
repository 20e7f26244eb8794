"""What the guest of a node tells of itself: the artifact that is installed, its kernel's modules.

It is the guest's word, bounded and read strictly. Above is the life of clusters; below, the way
into the guest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from microvm_orchestrator.machine.shell import Command, Shell
from microvm_orchestrator.model.artifact import PREFIX

# Where an installation writes down what it has installed.
INSTALLED = "/opt/vmcluster/installed"
_TIMEOUT_S = 5.0
_CAP = 1 << 17
_MAX_MODULES = 1000
_DIGITS = re.compile(rb"[0-9a-f]{64}")
_MODULE = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_LOOK = f"""head -c 65 {INSTALLED} 2>/dev/null
echo
while read -r name _; do echo "$name"; done 2>/dev/null </proc/modules
"""


@dataclass(frozen=True, slots=True)
class Inside:
    """What a guest has told."""

    artifact_id: str | None = None
    # None: it did not tell.
    modules: tuple[str, ...] | None = None


UNTOLD = Inside()


async def look_inside(shell: Shell) -> Inside:
    """Ask a guest. Raises: as `Shell.exec`."""
    look = Command(["/bin/sh", "-c", _LOOK], timeout_s=_TIMEOUT_S)
    ran = await shell.exec(look, output_cap=_CAP)
    return read(ran.stdout)


def read(told: bytes) -> Inside:
    """Read what a guest has said; what is no name of a module is none."""
    installed, _, rest = told.partition(b"\n")
    names = {name for name in rest.split() if _MODULE.fullmatch(name)}
    return Inside(
        PREFIX + installed.decode() if _DIGITS.fullmatch(installed) else None,
        tuple(sorted(name.decode() for name in names)[:_MAX_MODULES]),
    )
