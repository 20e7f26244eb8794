"""The way out of a guest: one port in it, behind which our proxy is, and nothing else.

Keys are added on this side. Whoever connects is known to be the run or the agent that the machine
is of, as only its guest has the port. Above are the steps of a run and the turns of an agent;
below, the egress room and the shell into the machine.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from pydantic import TypeAdapter, ValidationError

from microvm_orchestrator import config, errors, log
from microvm_orchestrator.egress.budget import Budget as Limits
from microvm_orchestrator.egress.budget import Spent
from microvm_orchestrator.egress.endpoint import Egress, open_egress
from microvm_orchestrator.egress.policy import Policy
from microvm_orchestrator.egress.prices import Prices
from microvm_orchestrator.images.files import write_whole
from microvm_orchestrator.lifecycle.port import held_open
from microvm_orchestrator.lifecycle.program import PORT
from microvm_orchestrator.model.run import Budget, Usage
from microvm_orchestrator.model.values import rfc3339

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.egress.budget import Shared
    from microvm_orchestrator.egress.credentials import Credentials
    from microvm_orchestrator.egress.exchange import Exchange
    from microvm_orchestrator.egress.models import OnExhausted
    from microvm_orchestrator.machine.base import Machine as RunningMachine

# The file in a folder with a line for each request; how many there are is bounded.
REACHED = "reached.jsonl"
# The file there with what was spent on models, for the next daemon.
SPENT = "spent.json"
_SPENT = TypeAdapter(Spent)
_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Leave:
    """What somebody may reach, and with what."""

    hosts: Sequence[str]
    credentials: Sequence[str]
    budget: Limits
    # Keys are for agents: what a script asks a model is asked by nobody.
    models: bool = True


@dataclass(frozen=True, slots=True)
class WayOut:
    """The open way of one machine."""

    egress: Egress

    def usage(self) -> Usage:
        return _usage(self.egress.spent)

    def allow(self, budget: Budget) -> None:
        """From now on this is the budget; requests that wait for a higher one go out."""
        self.egress.set_budget(limits(budget))


class WaysOut:
    """Who may reach what, for all machines that do work."""

    def __init__(self, settings: config.Egress, credentials: Credentials) -> None:
        self._settings = settings
        self._credentials = credentials

    @asynccontextmanager
    async def of(
        self,
        leave: Leave,
        machine: RunningMachine,
        folder: Path,
        on_exhausted: OnExhausted,
        *,
        holds: bool = True,
        shared: Shared | None = None,
    ) -> AsyncGenerator[WayOut]:
        """Keep the way of a machine open, over any number of connections into its guest.

        A request to a model that goes beyond the budget is told, and waits for a higher one unless
        nothing `holds` it; so does one beyond a limit that others spend of too, which `shared`
        tells. What is spent is added to what the folder tells of before.
        """
        reached = anyio.Path(folder / REACHED)
        policy = Policy.of(self._settings, leave.hosts, leave.credentials)
        if not leave.models:
            policy = replace(policy, providers=())

        async def on_exchange(exchange: Exchange) -> None:
            told = asdict(exchange) | {"at": rfc3339(exchange.at)}
            with _on_disk(reached):
                async with await reached.open("a", encoding="utf-8") as file:
                    await file.write(json.dumps(told) + "\n")

        async def on_spent(spent: Spent) -> None:
            await anyio.to_thread.run_sync(_write_spent, folder / SPENT, spent)

        async with (
            open_egress(
                policy,
                self._credentials,
                on_exchange,
                budget=leave.budget,
                shared=shared,
                spent=await anyio.to_thread.run_sync(_read_spent, folder / SPENT),
                on_spent=on_spent,
                on_exhausted=on_exhausted,
                holds=holds,
                prices=Prices(self._settings.prices),
            ) as egress,
            held_open(machine, PORT, egress.serve),
        ):
            yield WayOut(egress)


def spent_in(folder: Path) -> Usage:
    """Tell what was spent on models of which a folder tells; the way out may be shut. It blocks."""
    return _usage(_read_spent(folder / SPENT) or Spent())


def _usage(spent: Spent) -> Usage:
    return Usage(
        tokens_in=spent.tokens.input,
        tokens_out=spent.tokens.output,
        tokens_cached=spent.tokens.cache_read + spent.tokens.cache_write,
        cost_usd=spent.cost_usd + spent.unpriced_usd,
        requests=spent.requests,
    )


def limits(budget: Budget) -> Limits:
    return Limits(tokens=budget.tokens, cost_usd=budget.cost_usd)


def _write_spent(path: Path, spent: Spent) -> None:
    """Raises: StoreReadOnly."""
    with _on_disk(path):
        write_whole(path, _SPENT.dump_json(spent))


@contextmanager
def _on_disk(path: Path | anyio.Path) -> Generator[None]:
    """Raises: StoreReadOnly for a disk that takes nothing more."""
    try:
        yield
    except OSError as error:
        raise errors.StoreReadOnly(f"{path} cannot be written: {error.strerror}") from error


def _read_spent(path: Path) -> Spent | None:
    try:
        return _SPENT.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        # Only where the host itself went down in the middle of it.
        _log.error("spent_unreadable", path=str(path))
        return None
