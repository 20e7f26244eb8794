"""What a QEMU is told of the other end of a link: a socket that it listens at, or a tap."""

from __future__ import annotations

from pathlib import Path

from microvm_orchestrator.machine.base import Link
from microvm_orchestrator.machine.handover import Handover
from microvm_orchestrator.machine.tap import open_tap


def netdev(link: Link, path: Path, given: Handover) -> str:
    """Write a `-netdev` without its id. Raises: Unavailable when there is no such tap."""
    if link.tap is not None:
        return f"tap,fd={given.inherit(open_tap(link.tap))}"
    # QEMU listens, so that a switch which is started anew finds every machine.
    return f"stream,server=on,addr.type=fd,addr.str={given.listen(path)}"
