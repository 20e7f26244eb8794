"""Streams of agents, by their names: files and folders of any size, and a terminal.

Each is the stream of the same kind of a machine, with the agent's machine put in its place: one
that was suspended is started for it. Above is the front end that carries the frames; below, the
streams of machines.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from microvm_orchestrator.conversations.home import folder_of
from microvm_orchestrator.lifecycle.guest import HOME
from microvm_orchestrator.model.values import Flag
from microvm_orchestrator.service import streams
from microvm_orchestrator.service.agent_files import AgentPath, in_workspace
from microvm_orchestrator.service.agents import NamedAgent
from microvm_orchestrator.service.execs import (
    USUAL_TIMEOUT_S,
    ExecId,
    TerminalSize,
    VariableName,
    Word,
)
from microvm_orchestrator.service.service import Service, actor, parse
from microvm_orchestrator.service.streams import Offset
from microvm_orchestrator.service.talk import Stream, Talk
from microvm_orchestrator.service.transfers import FileToFetch, FileToSend, TreeToFetch, TreeToSend

if TYPE_CHECKING:
    from microvm_orchestrator.service.calls import Answer, Caller


class _OfAgent(NamedAgent):
    path: AgentPath


class SendAgentFile(FileToSend, _OfAgent):
    """Where it goes."""


class FetchAgentFile(FileToFetch, _OfAgent):
    """Where it is."""


class SendAgentTree(TreeToSend, _OfAgent):
    """Where it goes."""


class FetchAgentTree(TreeToFetch, _OfAgent):
    """Where it is."""


class AgentTerminal(NamedAgent):
    """A program to run beside an agent, where it works and as it runs itself."""

    argv: Annotated[list[Word], Field(min_length=1, max_length=4096)] | None = None
    script: Word | None = None
    env: Annotated[dict[VariableName, Word], Field(max_length=256)] = Field(default={})
    path: AgentPath | None = Field(
        default=None,
        description="where it runs; by default where the agent does, on its checkout if it has one",
    )
    terminal: TerminalSize | None = None
    stdin_open: Flag = False
    exec_id: ExecId | None = None
    offset: Offset = 0
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=2_592_000.0)] = USUAL_TIMEOUT_S


async def _at_home(
    there: Stream,
    service: Service,
    caller: Caller,
    request: _OfAgent | AgentTerminal,
    talk: Talk,
) -> Answer:
    agent = await service.host.agents.awake(request.agent, actor(caller, f"agent_{there.name}"))
    path = folder_of(agent) if request.path is None else in_workspace(request.path)
    given = {**_given(request, path), "machine": agent.machine_id}
    return await there.handler(service, caller, parse(there.request, given), talk)


def _given(request: _OfAgent | AgentTerminal, path: str) -> dict[str, object]:
    given = request.model_dump(exclude={"agent", "path"})
    if isinstance(request, AgentTerminal):
        return {**given, "cwd": path, "env": {"HOME": HOME, **request.env}}
    return {**given, "path": path}


_OF_MACHINES = {
    "file_put": ("agent_file_put", SendAgentFile),
    "file_get": ("agent_file_get", FetchAgentFile),
    "tree_put": ("agent_tree_put", SendAgentTree),
    "tree_get": ("agent_tree_get", FetchAgentTree),
    "machine_exec": ("agent_shell", AgentTerminal),
}
# Every kind of stream that there is.
STREAMS = {
    **streams.STREAMS,
    **{
        name: Stream(name, request, partial(_at_home, streams.STREAMS[of_machine]))
        for of_machine, (name, request) in _OF_MACHINES.items()
    },
}
