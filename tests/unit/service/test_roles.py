"""Roles over the service: listed, looked at, and taken on by agents that keep them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from calling import VIEWER, house
from machines import fake_program, publish_no_image
from microvm_orchestrator import errors
from microvm_orchestrator.agents.drivers.base import Endpoint
from microvm_orchestrator.agents.drivers.claude import ClaudeDriver
from microvm_orchestrator.conversations.turn import task_of
from microvm_orchestrator.model.agent import Agent, Message, MessageState

if TYPE_CHECKING:
    from pathlib import Path

    from calling import House

LEAD = "---\ndescription: Leads a team.\naliases: boss\n---\nYou lead.\n"


async def told(here: House, agent_id: str) -> str:
    """Give the text that the program of an agent is started with, beside what is said to it."""
    agent = Agent.model_validate((await here.ask("agent_get", agent=agent_id))["agent"])
    message = Message(
        message_id=f"{agent_id}.msg_1",
        agent_id=agent_id,
        owner=agent.owner,
        sender=agent.owner,
        text="hello",
        state=MessageState.DELIVERED,
        created_at=agent.created_at,
    )
    invocation = ClaudeDriver().prepare(
        task_of(agent, message, "mo_x"),
        Endpoint("http://127.0.0.1:1", "key"),
        "/agent",
        "/workspace",
    )
    place = invocation.argv.index("--append-system-prompt-file")
    [file] = [file for file in invocation.files if file.path == invocation.argv[place + 1]]
    return file.content.decode()


async def test_an_agent_keeps_the_role_that_it_was_spawned_with(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "lead.md").write_text(LEAD)
    machines: dict[str, object] = {"qemu": str(fake_program(tmp_path))}
    async with house(tmp_path, machines=machines, agents={"roles_dir": folder}) as here:
        publish_no_image(here.service.host.images, "mute", "fake.silent")
        home = {"image": "mute", "wait_s": 0}
        ada = (await here.ask("agent_spawn", role="security", **home))["target"]
        asked = {"role": "boss", "system_prompt": "Be brief.", **home}
        bob = (await here.ask("agent_spawn", **asked))["target"]
        plain = (await here.ask("agent_spawn", **home))["target"]
        role = await here.ask("role_get", name="security", by=VIEWER)
        assert await told(here, ada) == role["prompt"]
        (folder / "lead.md").write_text(LEAD.replace("You lead.", "You follow."))
        assert (await here.ask("role_get", name="boss"))["prompt"] == "You follow."
        assert await told(here, bob) == "You lead.\n\nBe brief."
        agents = {each["agent_id"]: each for each in (await here.ask("agent_list"))["items"]}
        kept = {
            agent_id: (each["character"]["role"], each["role_prompt"])
            for agent_id, each in agents.items()
        }
        assert kept == {
            ada: ("security_analyst", role["prompt"]),
            bob: ("lead", "You lead."),
            plain: (None, None),
        }
        for agent in agents:
            await here.ask("agent_end", agent=agent)


async def test_an_agent_is_spawned_with_no_role_that_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "roles"
    folder.mkdir()
    (folder / "lead.md").write_text("You lead.")
    async with house(tmp_path) as here:
        with pytest.raises(errors.InvalidInput, match="no role devops_engineer") as unknown:
            await here.ask("agent_spawn", role="devops_engineer", wait_s=0)
        assert unknown.value.hint is not None
        assert unknown.value.hint.startswith("there are: architect, backend_developer, ")
        with pytest.raises(errors.InvalidInput, match=r"the role lead: lead\.md: line 1: "):
            await here.ask("agent_spawn", role="lead", wait_s=0)
        assert (await here.ask("agent_list"))["items"] == []


async def test_roles_are_listed_with_the_files_that_are_none(tmp_path: Path) -> None:
    folder = tmp_path / "roles"
    folder.mkdir()
    (folder / "lead.md").write_text(LEAD)
    (folder / "debugger.md").write_text("---\n---\n")
    async with house(tmp_path) as here:
        listed = await here.ask("role_list", by=VIEWER)
        roles = {each["name"]: each for each in listed["items"]}
        assert roles["lead"] == {
            "name": "lead",
            "description": "Leads a team.",
            "aliases": ["boss"],
            "source": "user",
        }
        assert roles["code_reviewer"]["source"] == "shipped"
        assert "debugger" not in roles
        assert listed["broken"] == [
            {"file": "debugger.md", "reason": "its head has no description"}
        ]
        with pytest.raises(errors.NotFound):
            await here.ask("role_get", name="devops_engineer", by=VIEWER)
