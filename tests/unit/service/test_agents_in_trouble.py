"""Agents to whom something happens at a bad moment: others, faults, the end of a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from talking import agent_of, home, spawned, stands

if TYPE_CHECKING:
    from pathlib import Path


async def test_one_whose_machine_a_fault_holds_is_suspended_once_that_is_healed(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada")
        machine = (await agent_of(here, ada))["machine_id"]
        await here.ask("fault_inject", kind="pause", machine=machine)
        operation = await here.ask("agent_suspend", agent=ada, wait_s=0)
        # Others hear nothing of that.
        await here.ask("agent_end", agent=await spawned(here, "bob"))
        await here.ask("fault_heal_all", machine=machine)
        await here.ask("operation_wait", operation_id=operation["operation_id"])
        await stands(here, ada, "suspended", "")
        await here.ask("agent_end", agent=ada)
