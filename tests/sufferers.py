"""Machines that something can befall, without machines: proved by the suite the real ones pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.model.fault import UNHARMED, Harm

if TYPE_CHECKING:
    from collections.abc import Collection


class PlainSufferers:
    """Machines that are written down; they outlive a daemon, as real ones do."""

    def __init__(self, machines: Collection[str]) -> None:
        self.known = set(machines)
        # Of those that run.
        self.standing = dict.fromkeys(sorted(machines), UNHARMED)

    async def found(self) -> Collection[str]:
        return sorted(self.known)

    async def check(self, machine_id: str, harm: Harm) -> None:
        if machine_id not in self.known:
            raise errors.NotFound(f"no machine {machine_id}")
        if machine_id not in self.standing:
            raise errors.StateForbids(f"machine {machine_id} is stopped")
        del harm  # it offers all of it

    async def harm(self, machine_id: str, harm: Harm, touched: frozenset[str]) -> None:
        if machine_id in self.standing:
            update = {name: getattr(harm, name) for name in touched}
            if update.get("cpu_share"):
                # In whole microseconds of a tenth of a second, as a control group has it.
                update["cpu_share"] = round(update["cpu_share"], 5)
            self.standing[machine_id] = self.standing[machine_id].model_copy(update=update)

    async def harmed(self, machine_id: str, touched: frozenset[str]) -> Harm | None:
        if machine_id not in self.standing:
            return None
        standing = self.standing[machine_id]
        return Harm.model_validate({name: getattr(standing, name) for name in touched})

    # What becomes of them otherwise.

    def stop(self, machine_id: str) -> None:
        self.standing.pop(machine_id, None)

    def start(self, machine_id: str, harm: Harm) -> None:
        """Let one run, which asks what it is to suffer."""
        self.standing[machine_id] = harm
