"""Whether an agent can be what it is asked to be: its program understands it, its image has it.

What cannot be is refused before anything is made. An image that others built is looked at in its
machine. Above is the life of agents; below, the drivers and the images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.agents.drivers import find_driver
from microvm_orchestrator.agents.drivers.base import AgentTask, Endpoint
from microvm_orchestrator.images.programs import PROGRAMS, programs_of
from microvm_orchestrator.images.store import Image
from microvm_orchestrator.lifecycle.guest import HOME, WORKSPACE
from microvm_orchestrator.lifecycle.program import PLACEHOLDER, PROXY
from microvm_orchestrator.machine.shell import Command

if TYPE_CHECKING:
    from microvm_orchestrator.images.store import AnyImage
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.model.agent import Character

# As which MCP server an agent knows whoever it belongs with.
OWN_SERVER = "orchestrator"
# To look whether a program is there.
_LOOK_S = 60.0


def system_prompt(character: Character, role_prompt: str | None) -> str | None:
    """Give what is added to a program's own: its role, then what else it is to be."""
    told = [text for text in (role_prompt, character.system_prompt) if text]
    return "\n\n".join(told) or None


def refuse_unfit(character: Character, role_prompt: str | None, image: AnyImage) -> None:
    """Raises: NotOffered for what its program or its image has not; InvalidInput, TooLarge."""
    if OWN_SERVER in character.mcp_servers:
        raise errors.InvalidInput(
            f"an agent has an MCP server {OWN_SERVER} of its own", hint="call yours something else"
        )
    task = AgentTask(
        prompt="-",
        model=character.model,
        system_prompt=system_prompt(character, role_prompt),
        max_turns=character.max_turns,
        mcp_servers=character.mcp_servers,
    )
    driver = find_driver(character.driver)
    driver.prepare(task, Endpoint(PROXY, PLACEHOLDER), HOME, WORKSPACE)
    if isinstance(image, Image) and PROGRAMS[driver.name] not in programs_of(image.manifest.inputs):
        raise _without(driver.name, image)


async def look_for_program(character: Character, image: AnyImage, machine: RunningMachine) -> None:
    """Look in a machine of an image that others made. Raises: NotOffered."""
    if not isinstance(image, Image):
        script = f"command -v {character.driver}"
        looked = Command(["/bin/sh", "-c", script], timeout_s=_LOOK_S)
        if (await (await machine.reached()).exec(looked)).exit.code != 0:
            raise _without(character.driver, image)


def _without(name: str, image: AnyImage) -> errors.NotOffered:
    called = image.names[0] if image.names else image.digest[:12]
    how = (
        f"`image build --name {name} --{name} latest` makes one that has"
        if isinstance(image, Image)
        else f"there is no command {name} in its machines"
    )
    return errors.NotOffered(f"the image {called} has no {PROGRAMS[name].title}: {how}")
