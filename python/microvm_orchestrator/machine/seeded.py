"""A seeded run: one program in a guest of its own, whose every input is fixed before it begins.

The same program, image, memory and seed give the same console and the same results, byte for byte,
on any host with the same QEMU; another seed gives others. There is no way in while it runs: a
message from the host would come at a moment that is the host's. Below: `qemu/seeded.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from microvm_orchestrator.machine.shell import OUTPUT_CAP

# When a guest takes its clock to begin, where nobody says.
BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
# Of the host's time. What only waits costs none, since the guest's clock jumps ahead.
RUN_TIMEOUT_S = 600.0
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Program:
    """What is run, and with what."""

    argv: tuple[str, ...]
    # Of all that is random in the guest.
    seed: int
    stdin: bytes = b""
    # What lies in its folder when it begins: content by path.
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    # What the guest's clock says when it begins.
    began: datetime = BEGAN
    # What is kept of each of stdout and stderr.
    output_cap: int = OUTPUT_CAP


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a seeded run. Two that are the same in all but `host_s` ran the same way."""

    # As a shell tells it: 128 and the number where a signal ended the program; None where the guest
    # ended before the program did.
    status: int | None
    # Why there is no status, in words for a person.
    reason: str
    stdout: bytes
    stderr: bytes
    # It said more than was kept.
    truncated: bool
    # Over all that the guest wrote to its console.
    console_sha256: str
    # The end of that.
    console: bytes
    # Over all of the above: equal if and only if the runs were.
    sha256: str
    # How long it took here.
    host_s: float
