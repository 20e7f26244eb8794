"""The profile `orchestrator-server` as its users have it: real processes on one daemon."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from daemon import running_daemon

BRIDGE = Path(sys.executable).with_name("microvm-orchestrator")
PATIENCE_S = 60.0
TASKS = 60
NAMES = ("left", "right")

# A worker as that program's users wrote them: it knows two tools and the bridge it starts.
WORKER = """
import json, subprocess, sys
bridge = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
number = 0

def ask(method, params):
    global number
    number += 1
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    bridge.stdin.write(json.dumps(message).encode() + b"\\n")
    bridge.stdin.flush()
    answer = json.loads(bridge.stdout.readline())
    assert answer["id"] == number, answer
    return answer["result"]

def call(tool, **arguments):
    result = ask("tools/call", {"name": tool, "arguments": arguments})
    return json.loads(result["content"][0]["text"])

ask("initialize", {"protocolVersion": "2024-11-05", "capabilities": {},
                   "clientInfo": {"name": "worker", "version": "0"}})
bridge.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\\n')
print("ready", flush=True)
sys.stdin.readline()
me, done = sys.argv[1], []
while True:
    task = call("get_next_task", instance_id=me)
    if "id" not in task:
        break
    done.append(task["id"])
    call("complete_task", task_id=task["id"], instance_id=me, result=me)
print(json.dumps(done))
bridge.stdin.close()
bridge.stdout.read()
bridge.wait()
"""


def _worker(name: str, path: Path) -> subprocess.Popen[bytes]:
    bridge = [BRIDGE, "connect", "--socket", path, "--profile", "orchestrator-server"]
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", WORKER, name, *bridge],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


class _Client:
    """A client that needs no bridge."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(path))
        self._socket.sendall(b'{"connect": {"profile": "orchestrator-server"}}\n')
        self._answers = self._socket.makefile("rb")

    def call(self, tool: str, **arguments: Any) -> Any:
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": dict[str, object](),
        }
        params = {"name": tool, "arguments": arguments, "_meta": meta}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        return json.loads(json.loads(self._answers.readline())["result"]["content"][0]["text"])

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


def test_two_client_processes_at_once_never_get_the_same_task(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon, closing(_Client(daemon.socket)) as client:
        for number in range(3):
            client.call("create_task", id=f"first-{number}", description="x")
        for number in range(TASKS):
            needed = [f"first-{number % 3}"]
            client.call("create_task", id=f"then-{number}", description="x", dependencies=needed)
        workers = [_worker(name, daemon.socket) for name in NAMES]
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(b"go\n")
            worker.stdin.flush()
        done = [json.loads(worker.communicate(timeout=PATIENCE_S)[0]) for worker in workers]
        status = client.call("get_task_status")

    everything = {f"first-{n}" for n in range(3)} | {f"then-{n}" for n in range(TASKS)}
    assert len(done[0]) + len(done[1]) == len(everything)
    assert {*done[0], *done[1]} == everything
    assert all(done), "one of them did everything, which proves nothing"
    assert {task["id"]: task["assignedTo"] for task in status} == {
        task_id: name for name, ids in zip(NAMES, done, strict=True) for task_id in ids
    }
    assert {task["status"] for task in status} == {"completed"}
