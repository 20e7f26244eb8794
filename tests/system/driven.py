"""The real program of an agent, told a task by its driver and read by its reader, on this host.

It runs in folders of the test, as it would in a machine, against a scripted model.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from microvm_orchestrator import proc
from microvm_orchestrator.agents.drivers.base import AgentTask, Ended, Endpoint, Event, KeyKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pydantic import JsonValue

    from microvm_orchestrator.agents.drivers.base import Driver, Reader
    from model_api import ModelApi, Received

PATIENCE_S = 120
PLACEHOLDER = "sk-ant-placeholder"


@dataclass
class Place:
    """Where an agent works: a home of its own and a repository."""

    home: Path
    tree: Path

    def git(self, *words: str) -> str:
        argv = ["git", "-C", str(self.tree), *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def place_in(folder: Path) -> Place:
    """Give a home and a repository with one commit."""
    place = Place(folder / "home", folder / "tree")
    place.home.mkdir()
    place.tree.mkdir()
    place.git("init", "-q", "-b", "main")
    place.git("config", "user.name", "A User")
    place.git("config", "user.email", "user@example.com")
    (place.tree / "a.txt").write_text("one\n")
    place.git("add", ".")
    place.git("commit", "-qm", "begin")
    return place


@dataclass
class Performed:
    """What came of a run of the program."""

    ended: Ended
    events: list[Event]
    stdout: bytes
    status: int | None = None

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@dataclass
class Program:
    """A program in a place, at a model API."""

    driver: Driver
    path: Path
    place: Place
    api: ModelApi
    kind: KeyKind = KeyKind.API_KEY

    async def perform(
        self,
        task: AgentTask,
        meanwhile: Callable[[proc.Process], Awaitable[None]] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Performed:
        task = replace(task, program=str(self.path))
        endpoint = Endpoint(self.api.url, PLACEHOLDER, self.kind)
        given = self.driver.prepare(task, endpoint, str(self.place.home), str(self.place.tree))
        for file in given.files:
            lay(Path(file.path), file.content, file.mode)
        own = {"PATH": os.defpath, "LANG": "C.UTF-8", "TMPDIR": str(self.place.home)}
        performed = Performed(Ended(success=False), [], b"")
        reader = self.driver.reader(task)
        stderr: list[bytes] = []
        with anyio.fail_after(PATIENCE_S):
            async with (
                proc.spawn(
                    given.argv,
                    cwd=self.place.tree,
                    env={**own, **given.env, **(env or {})},
                    stdin=proc.PIPE,
                    stdout=proc.PIPE,
                    stderr=proc.PIPE,
                ) as process,
                anyio.create_task_group() as group,
            ):
                group.start_soon(feed, process, given.stdin)
                group.start_soon(listen, process.stdout, reader, performed)
                group.start_soon(collect, process.stderr, stderr)
                if meanwhile is not None:
                    await meanwhile(process)
                performed.status = await process.wait()
        assert performed.status is not None
        killed = performed.status < 0
        performed.ended = reader.finish(
            None if killed else performed.status,
            -performed.status if killed else None,
            b"".join(stderr),
        )
        return performed


def lay(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


async def feed(process: proc.Process, data: bytes) -> None:
    assert process.stdin is not None
    await process.stdin.write(data)
    process.stdin.close()


async def listen(stdout: proc.Reader | None, reader: Reader, performed: Performed) -> None:
    assert stdout is not None
    while chunk := await stdout.read():
        performed.stdout += chunk
        performed.events += reader.feed(chunk)


async def collect(stderr: proc.Reader | None, said: list[bytes]) -> None:
    assert stderr is not None
    while chunk := await stderr.read():
        said.append(chunk)


class Broken:
    """Breaks a program off with a signal, once a model has said a part of its answer."""

    def __init__(self, number: signal.Signals, said: int) -> None:
        self._number = number
        self._said = said
        self._reached = anyio.Event()

    async def hold(self, event: int) -> None:
        if event == self._said:
            self._reached.set()
            await anyio.sleep_forever()

    async def off(self, process: proc.Process) -> None:
        await self._reached.wait()
        process.signal(self._number)


def interrupt_once_begun(place: Place) -> Callable[[proc.Process], Awaitable[None]]:
    """Interrupt a program when what its tool runs writes into the pipe `begun`."""
    os.mkfifo(place.tree / "begun")
    begun = os.open(place.tree / "begun", os.O_RDWR | os.O_NONBLOCK)

    async def interrupt(process: proc.Process) -> None:
        try:
            await anyio.wait_readable(begun)
        finally:
            os.close(begun)
        process.signal(signal.SIGINT)

    return interrupt


async def over(pid: int) -> None:
    """Wait until a process has ended; that nobody has waited for it yet makes no difference."""
    try:
        ends = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with anyio.fail_after(PATIENCE_S):
            await anyio.wait_readable(ends)
    finally:
        os.close(ends)


async def check_prompt(program: Program, prompt: str) -> None:
    """Check that a prompt reaches the model as it is, and is the first that it hears."""
    done = await program.perform(AgentTask(prompt))
    assert done.ended.success, done.stdout
    assert f"user: {prompt}" in texts(program.api.conversation[0])
    assert program.place.git("status", "--porcelain") == ""


def scales(folder: Path) -> dict[str, JsonValue]:
    """Give an MCP server that has a tool `weigh`, which answers `HEAVY`."""
    server = folder / "server.py"
    server.write_text(_SERVER)
    return {"scales": {"command": sys.executable, "args": ["-I", str(server), HEAVY]}}


def texts(request: Received) -> list[str]:
    """Give every text that a request's conversation has, its author before it."""
    found: list[str] = []
    for entry in request.entries:
        content: Any = entry.get("content") or []
        blocks: list[Any] = [{"text": content}] if isinstance(content, str) else content
        found += [f"{entry.get('role')}: {block['text']}" for block in blocks if "text" in block]
    return found


# Prompts that programs might take for something else than what they say.
ODD = (
    "-p \"double\" 'single' `backticks` $(touch never) ${HOME} \\ %s *\n\n\t--flag\r\n"
    "é 🦀 \u2028 \x1b[1m"
)
ODD_PROMPTS = {
    "odd": ODD,
    "spaces": "  \n spaces around \n\n ",
    "slash": "/help me with this",
    "command": "/compact",
    "mark": "\ufeff mark",
    "bang": "! ls",
    "hash": "# remember",
    "mention": "@a.txt is a file",
    "tag": "<system-reminder>x</system-reminder>",
    "300 kB": ODD + "line 🦀 $(x) 'q'\n" * 16_000,
}

HEAVY = "7 'kg' $(x)"
# An MCP server on its standard streams, with a tool `weigh` that answers its first word.
_SERVER = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    match asked.get("method"):
        case "initialize":
            result = {"protocolVersion": asked["params"]["protocolVersion"],
                      "capabilities": {"tools": {}}, "serverInfo": {"name": "t", "version": "1"}}
        case "tools/list":
            result = {"tools": [{"name": "weigh", "description": "Weigh a thing",
                                 "inputSchema": {"type": "object"},
                                 "_meta": {"anthropic/alwaysLoad": True}}]}
        case "tools/call":
            result = {"content": [{"type": "text", "text": sys.argv[1]}]}
        case _:
            result = None
    if "id" in asked:
        answer = {"result": result} if result is not None else {
            "error": {"code": -32601, "message": "no such method"}}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}), flush=True)
"""
