"""The program of a run: how it is started in the guest, and how what it says is understood.

A run's program is the same whenever it is asked for: it is made of the task alone, so a daemon that
comes up again reads on where the last one was. Above are the steps of a run; below, the drivers.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microvm_orchestrator.agents.devshell import wrap
from microvm_orchestrator.agents.drivers import find_driver
from microvm_orchestrator.agents.drivers.base import AgentTask, Endpoint, KeyKind, Said, ToolUsed
from microvm_orchestrator.agents.drivers.program import (
    ProgramReader,
    prepare_command,
    prepare_script,
)
from microvm_orchestrator.egress.secrets import PATH as SECRETS_PATH
from microvm_orchestrator.lifecycle.guest import HOME, REPO, WORKSPACE
from microvm_orchestrator.machine.shell import Channel, Command
from microvm_orchestrator.model.run import Result
from microvm_orchestrator.model.values import MAX_TEXT

if TYPE_CHECKING:
    from microvm_orchestrator.agents.drivers.base import Ended, Event, Invocation, Reader
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.model.repo import RepoDefaults
    from microvm_orchestrator.model.run import RunSpec

# Where a guest finds its way out: a port that is listened on by nobody but us.
PORT = 8484
PROXY = f"http://127.0.0.1:{PORT}"
# What a guest holds in place of a key.
PLACEHOLDER = "sk-ant-placeholder-the-proxy-holds-the-key"
# Of standard error, what a driver may want to see at the end.
_STDERR_TAIL = 1 << 14
_LINE = 1000


@dataclass(frozen=True, slots=True)
class Program:
    """What is started, and who reads it."""

    invocation: Invocation
    command: Command
    reader: Reader


def program_of(run: Run, usual: RepoDefaults, *, timeout_s: float, devshell: bool) -> Program:
    """Raises: InvalidInput, TooLarge, NotOffered."""
    spec = run.spec
    if spec.kind != "agent":
        return plain_program(spec, run.variables, timeout_s=timeout_s, devshell=devshell)
    task = _agent_task(run, usual)
    driver = find_driver(spec.agent.driver or usual.driver or "claude")
    endpoint = Endpoint(PROXY, PLACEHOLDER, KeyKind.API_KEY)
    invocation = wrap(driver.prepare(task, endpoint, HOME, REPO), devshell=devshell)
    command = _command(spec, invocation, run.variables, timeout_s)
    return Program(invocation, command, driver.reader(task))


def plain_program(
    spec: RunSpec, variables: Mapping[str, str], *, timeout_s: float, devshell: bool
) -> Program:
    """Give the program of a run that is no agent. Raises: InvalidInput, TooLarge."""
    invocation = (
        prepare_command(spec.argv)
        if spec.kind == "command"
        else prepare_script(spec.script, HOME, interpreter=spec.interpreter)
    )
    invocation = wrap(invocation, devshell=devshell)
    return Program(invocation, _command(spec, invocation, variables, timeout_s), ProgramReader())


def _command(
    spec: RunSpec, invocation: Invocation, variables: Mapping[str, str], timeout_s: float
) -> Command:
    told = {**spec.env, **variables, **ways_to_secrets(spec.credentials)}
    return Command(
        argv=invocation.argv,
        env={"HOME": HOME, **ways_out(), **invocation.env, **told},
        cwd=REPO if spec.repo else WORKSPACE,
        timeout_s=timeout_s,
    )


def _agent_task(run: Run, usual: RepoDefaults) -> AgentTask:
    spec, agent = run.spec, run.spec.agent
    return AgentTask(
        prompt=spec.prompt or run.task.description or run.task.title,
        model=agent.model or usual.model,
        system_prompt=agent.system_prompt,
        max_turns=agent.max_turns,
        mcp_servers=agent.mcp_servers,
        session_id=str(uuid.uuid5(uuid.NAMESPACE_OID, run.record.run_id)),
        schema=agent.answer_schema,
    )


def ways_out() -> dict[str, str]:
    """Programs that honour these reach what the run may reach, and nothing else is there."""
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    return {**dict.fromkeys(names, PROXY), "no_proxy": "127.0.0.1,localhost"}


def ways_to_secrets(credentials: Iterable[str]) -> dict[str, str]:
    """Tell where a program asks what it needs a secret for."""
    words = {name: re.sub(r"[^A-Z0-9]", "_", name.upper()) for name in credentials}
    return {f"MICROVM_SECRET_{words[n]}_URL": f"{PROXY}{SECRETS_PATH}{n}" for n in words}


class Listener:
    """Hears a program out, and keeps what is told of it meanwhile."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._stderr = b""
        self.saying = ""

    def feed(self, channel: Channel, data: bytes) -> None:
        if channel is Channel.STDERR:
            self._stderr = (self._stderr + data)[-_STDERR_TAIL:]
            return
        for event in self._reader.feed(data):
            self.saying = _said(event) or self.saying

    def finish(self, code: int | None, signal: int | None, *, timed_out: bool) -> Result:
        ended = self._reader.finish(code, signal, self._stderr)
        return _result(ended, code, signal, timed_out=timed_out)


def _said(event: Event) -> str:
    match event:
        case Said(text):
            return " ".join(text.split())[:_LINE]
        case ToolUsed(name, brief):
            return f"{name}: {brief}"[:_LINE]
        case _:
            return ""


def _result(ended: Ended, code: int | None, signal: int | None, *, timed_out: bool) -> Result:
    error = None if ended.error is None else f"{ended.error.code}: {ended.error.message}"
    if timed_out:
        error = "timed-out: its program was ended when its time was up"
    return Result(
        success=ended.success and not timed_out,
        summary=ended.summary[:MAX_TEXT],
        exit_code=code,
        signal=signal,
        timed_out=timed_out,
        error=None if error is None else error[:_LINE],
        session_id=ended.session_id,
        answer=ended.structured_output,
    )
