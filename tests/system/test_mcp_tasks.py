"""A waiting call that became an MCP task outlives the daemon, however that ended."""

from __future__ import annotations

import json
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from daemon import running_daemon

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S = 30.0
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {
        "extensions": {"io.modelcontextprotocol/tasks": dict[str, object]()}
    },
}


class Client:
    """A client that knows the tasks extension."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": META}}
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        return json.loads(self._answers.readline())["result"]

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return self.ask("tools/call", name=tool, arguments=arguments)

    def finished(self, task_id: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            task = self.ask("tasks/get", taskId=task_id)
            if task["status"] != "working":
                return task
        raise AssertionError(f"the task {task_id} never ended")

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


def test_waits_go_on_and_claims_are_not_repeated_after_the_daemon_was_killed(
    tmp_path: Path,
) -> None:
    with running_daemon(tmp_path) as daemon, closing(Client(daemon.socket)) as client:
        client.call("task_submit", key="slow", capabilities=["rare"])
        wait = client.call("task_wait", task_id="slow", timeout_s=600.0)
        claim = client.call("task_claim", worker="w", wait_s=600.0)
        daemon.kill()
    with running_daemon(tmp_path) as daemon, closing(Client(daemon.socket)) as client:
        again = client.ask("tasks/get", taskId=wait["taskId"])
        client.call("task_cancel", task_id="slow")
        waited = client.finished(wait["taskId"])
        claimed = client.finished(claim["taskId"])

    assert (wait["resultType"], claim["resultType"]) == ("task", "task")
    assert again["status"] == "working"
    assert waited["result"]["structuredContent"]["task"]["state"] == "cancelled"
    assert claimed["status"] == "failed"
    assert claimed["error"]["message"].startswith("unknown-outcome: ")
