"""What can be done to agents and teams, each found in the audit log with whom it was about."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from system.cluster_deeds import Ledger


def do_all(ledger: Ledger) -> None:
    act = ledger.act
    # What boots here has no such program in it, which is the answer to what it is told.
    agent = act("agent_spawn", name="ada")["target"]
    act("agent_send", agent, agent="ada", text="hello", wait_s=60)
    [told] = ledger.world.ask("agent_output", agent="ada")["items"]
    said = told["message_id"]
    ledger.refused("agent_reply", said, "state-forbids", message_id=said, text="x")
    act("agent_send_many", agent, agents=["ada"], text="all", wait_s=0)
    act("agent_interrupt", agent, agent="ada")
    act("agent_budget", agent, agent="ada", tokens=9)
    act("agent_supervise", agent, agent="ada", supervise="off")
    home = ledger.world.ask("agent_get", by="admin", agent="ada")["agent"]["machine_id"]
    path = str(ledger.world.daemon.state_dir / "g")
    act("agent_file_put", home, agent="ada", path=path, content="x")
    # Begun too; what stands for QEMU here has no layers of disks, and ends of it.
    act("agent_branch", agent, agent="ada", name="copy")
    # Nobody belongs to her, and she is not there to be asked for long.
    bob = ledger.world.ask("agent_spawn", by="admin", name="bob", parent="ada")["target"]
    act("team_coordinate", coordinator="ada", task="x", wait_s=0)
    ledger.world.ask("agent_end", by="admin", agent=bob, force=True)
    # There is no room for so many, who wait until there is; cancelled, there are none of them.
    team = act("team_spawn", "team", template="research", prefix="team", wait_s=0)
    ledger.world.ask("operation_cancel", by="admin", operation_id=team["operation_id"])
    told = ledger.world.ask("operation_wait", operation_id=team["operation_id"], timeout_s=25)
    assert told["operation"]["state"] == "cancelled"
    of_team = [each for each in ledger.world.every("agent_list") if "team-" in each["name"]]
    assert {each["state"] for each in of_team} <= {"ended", "failed"}
    # It works on no repository, which is what becomes of that.
    act("agent_collect", agent, agent="ada")
    act("agent_suspend", agent, agent="ada")
    act("agent_resume", agent, agent="ada")
    act("agent_end", agent, agent="ada")
    act("agent_delete", agent, agent=agent)
