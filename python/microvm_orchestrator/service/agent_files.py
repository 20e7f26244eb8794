"""Files of agents: by the agent's name, and below its workspace where nothing else is said.

An agent that was suspended is started for it, as it is for a message: what it has lies on its
machine's disk. Above are the front ends; below, the agents and the files of machines.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from microvm_orchestrator import errors
from microvm_orchestrator.lifecycle.guest import HOME, WORKSPACE
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.values import Flag, Line
from microvm_orchestrator.service.agents import NamedAgent
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, declare
from microvm_orchestrator.service.execs import Encoded
from microvm_orchestrator.service.files import (
    MAX_SMALL,
    FileRead,
    FileWritten,
    GetFile,
    Mode,
    PutFile,
    read_small,
    write_small,
)
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.model.records import Actor

_LIST_S = 60.0
# Of what a guest answers: ten thousand files with names of the usual length.
_LIST_BYTES = 1 << 20
_USUAL_FILES = 1000
_FILES_MOST = 10_000
_DEPTH = "64"
# No path that find gives has two slashes in a row, so no name can look like the next record.
_MARK = b"//"
# Words: the folder, what is passed by in it, how deep, and how many bytes of it all.
_LIST = """\
cd "$1" || exit 3
find . -maxdepth "$3" -xdev \\( -path "$2" -o -name .git \\) -prune -o \\
    -type f -exec stat -c '//%s %n' {} + 2>/dev/null | head -c "$4"
"""
_GONE = 3
# A path that nothing has.
_NOTHING = "./."


def _stays_below(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError("leads upwards")
    return path


AgentPath = Annotated[
    str,
    Field(
        pattern=r"^[^\x00]+$",
        max_length=4096,
        description=f"below {WORKSPACE}, or an absolute path in its machine",
    ),
    AfterValidator(_stays_below),
]


class ListAgentFiles(NamedAgent):
    """Which files of an agent."""

    path: AgentPath = Field(default=".", description=f"a folder, by default {WORKSPACE}")
    limit: Annotated[int, Field(strict=True, ge=1, le=_FILES_MOST)] = _USUAL_FILES


class GetAgentFile(NamedAgent):
    """A small file to read."""

    path: AgentPath
    max_size: Annotated[int, Field(strict=True, ge=0, le=MAX_SMALL)] = Field(
        default=MAX_SMALL, description="a larger one is refused"
    )


class PutAgentFile(NamedAgent):
    """A small file to write."""

    path: AgentPath
    content: Annotated[str, Field(max_length=MAX_SMALL)] | None = None
    content_base64: Encoded | None = Field(default=None, description="the same, in base64")
    mode: Mode = Field(default="0644", description="its permissions, octal")
    parents: Flag = Field(default=True, description="whether to make the folders above it")
    user: Line | None = Field(default=None, description="its owner; by default as the agent runs")


class AgentFile(Answer):
    """A file of an agent."""

    path: str = Field(description="below the folder that was asked for")
    size: int


class AgentFiles(Answer):
    """The files below a folder of an agent."""

    agent_id: str
    folder: str
    files: list[AgentFile]
    truncated: bool = Field(description="there are more")


def in_workspace(path: str) -> str:
    """Give the absolute path in an agent's machine."""
    return posixpath.normpath(posixpath.join(WORKSPACE, path))


@declare(
    "agent_file_list",
    "GET /v1/agents/{agent}/files",
    role=Role.OPERATOR,
    effect=Effect.READ,
    waits=True,
)
async def agent_file_list(service: Service, caller: Caller, request: ListAgentFiles) -> AgentFiles:
    """List the files below an agent's workspace, or another folder of its machine, by their names.

    Links, git's own folders, and in the workspace what its program keeps for itself, are left out.
    One that was suspended is started for it.
    """
    agent = await service.host.agents.awake(request.agent, actor(caller, "agent_file_list"))
    folder = in_workspace(request.path)
    files, cut = await _listed(service, agent.machine_id, folder, actor(caller, "agent_file_list"))
    return AgentFiles(
        agent_id=agent.agent_id,
        folder=folder,
        files=files[: request.limit],
        truncated=cut or len(files) > request.limit,
    )


async def _listed(
    service: Service, machine_id: str, folder: str, by: Actor
) -> tuple[list[AgentFile], bool]:
    _, running = await service.host.execs.awake(machine_id, by)
    passed_by = f"./{posixpath.basename(HOME)}" if folder == WORKSPACE else _NOTHING
    words = [folder, passed_by, _DEPTH, str(_LIST_BYTES)]
    argv = ["/bin/sh", "-c", _LIST, "sh", *words]
    shell = await running.reached()
    done = await shell.exec(Command(argv, timeout_s=_LIST_S), output_cap=_LIST_BYTES)
    if done.exit.code == _GONE:
        raise errors.NotFound(f"there is no folder {folder} in its machine")
    if done.exit.code != 0:
        raise errors.Unavailable(f"its machine did not list {folder} within {_LIST_S:g} s")
    cut = len(done.stdout) >= _LIST_BYTES
    _, *records = done.stdout.split(_MARK)
    if cut:
        # The last of them may be a part only.
        records = records[:-1]
    found = [file for record in records if (file := _file(record)) is not None]
    return sorted(found, key=lambda file: file.path), cut


def _file(record: bytes) -> AgentFile | None:
    size, _, name = record.partition(b" ")
    path = name.removesuffix(b"\n").removeprefix(b"./")
    # A guest may say anything.
    if not (size.isdigit() and len(size) < len(str(1 << 63)) and path):
        return None
    return AgentFile(path=path.decode(errors="backslashreplace"), size=int(size))


@declare(
    "agent_file_get",
    "GET /v1/agents/{agent}/files/content",
    role=Role.OPERATOR,
    effect=Effect.READ,
    waits=True,
)
async def agent_file_get(service: Service, caller: Caller, request: GetAgentFile) -> FileRead:
    """Read a small file of an agent; one that was suspended is started for it."""
    by = actor(caller, "agent_file_get")
    agent = await service.host.agents.awake(request.agent, by)
    path = in_workspace(request.path)
    there = GetFile(machine=agent.machine_id, path=path, max_size=request.max_size)
    return await read_small(service, by, there)


@declare(
    "agent_file_put",
    "PUT /v1/agents/{agent}/files/content",
    role=Role.OPERATOR,
    idempotent=True,
    waits=True,
)
async def agent_file_put(service: Service, caller: Caller, request: PutAgentFile) -> FileWritten:
    """Write a small file of an agent, whole or not at all; a suspended one is started for it."""
    by = actor(caller, "agent_file_put")
    agent = await service.host.agents.awake(request.agent, by)
    given = request.model_dump(exclude={"agent", "path"})
    there = PutFile(machine=agent.machine_id, path=in_workspace(request.path), **given)
    return await write_small(service, by, there)


CALLS: tuple[Call, ...] = (agent_file_list, agent_file_get, agent_file_put)
