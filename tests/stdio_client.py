"""A client of MCP over standard input and output, as one that is written by hand: it knows no SDK.

It starts the bridge as the configuration of an MCP client says, with a command, words and variables
of the environment, shakes hands in the oldest era, and calls tools by their names.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daemon import COMMAND

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

# Longer than anything takes on a busy machine without KVM.
PATIENCE_S = 600.0


@dataclass
class StdioClient:
    """The client's end."""

    bridge: subprocess.Popen[bytes]
    tools: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    _number: int = 0
    _rest: bytes = b""

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._say({"id": self._number, "method": method, "params": params})
        while True:
            heard = self._hear()
            if heard.get("id") == self._number and "method" not in heard:
                return heard

    def text(self, tool: str, **arguments: Any) -> tuple[str, bool]:
        """Call a tool; the one text that it gives, and whether it says that it is an error."""
        answer = self.ask("tools/call", name=tool, arguments=arguments)
        assert "result" in answer, answer
        (block,) = answer["result"]["content"]
        return block["text"], bool(answer["result"].get("isError"))

    def call(self, tool: str, **arguments: Any) -> Any:
        """Call a tool that succeeds, and read its text as JSON."""
        text, is_error = self.text(tool, **arguments)
        assert not is_error, text
        return json.loads(text)

    def refusal(self, tool: str, **arguments: Any) -> str:
        text, is_error = self.text(tool, **arguments)
        assert is_error, text
        return text

    def _say(self, message: dict[str, Any]) -> None:
        assert self.bridge.stdin is not None
        self.bridge.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.bridge.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self.bridge.stdout is not None
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.bridge.stdout], [], [], deadline - time.monotonic())
            assert ready, "the bridge says nothing"
            data = os.read(self.bridge.stdout.fileno(), 1 << 16)
            assert data, "the bridge has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def shake_hands(self) -> None:
        self.ask(
            "initialize",
            protocolVersion="2024-11-05",
            capabilities={},
            clientInfo={"name": "by hand", "version": "0"},
        )
        self._say({"method": "notifications/initialized"})
        self.tools = {tool["name"]: tool for tool in self.ask("tools/list")["result"]["tools"]}


@contextmanager
def stdio_client(
    socket: Path, profile: str, env: Mapping[str, str] | None = None
) -> Generator[StdioClient]:
    """Be connected to a profile of a daemon until the block ends."""
    words = [COMMAND, "connect", "--socket", socket, "--profile", profile, "--wait", "20"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=pipe, stdout=pipe, env={**os.environ, **(env or {})}
    ) as bridge:
        client = StdioClient(bridge)
        try:
            client.shake_hands()
            yield client
        finally:
            assert bridge.stdin is not None
            bridge.stdin.close()
            try:
                bridge.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                bridge.kill()
