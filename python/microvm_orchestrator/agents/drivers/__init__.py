"""One driver for each program, by the name that a task calls it by.

To add one: a module with a driver and its reader, an entry here, and recorded output for its tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.agents.drivers.claude import ClaudeDriver
from microvm_orchestrator.agents.drivers.codex import CodexDriver
from microvm_orchestrator.agents.drivers.opencode import OpencodeDriver

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm_orchestrator.agents.drivers.base import Driver

DRIVERS: Mapping[str, Driver] = {
    driver.name: driver for driver in (ClaudeDriver(), CodexDriver(), OpencodeDriver())
}


def find_driver(name: str) -> Driver:
    """Raises: InvalidInput."""
    driver = DRIVERS.get(name)
    if driver is None:
        known = ", ".join(DRIVERS)
        raise errors.InvalidInput(f"there is no agent {name!r}", hint=f"there are {known}")
    return driver
