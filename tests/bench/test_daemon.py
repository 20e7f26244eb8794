"""What the daemon costs above the bare protocol: latency, start, memory; all in one run."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.figures import cpu_of, median_ms, p95_ms, rss_mib, tell
from daemon import running_daemon
from system import doors

ECHO = Path(__file__).with_name("echo_server.py")
META: dict[str, Any] = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


class RawClient:
    """The cheapest MCP client there is: a line out, a line in."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._calls = 0

    def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self._calls += 1
        params: dict[str, Any] = {"name": tool, "arguments": arguments, "_meta": META}
        message: dict[str, Any] = {
            "jsonrpc": "2.0",
            "id": self._calls,
            "method": "tools/call",
            "params": params,
        }
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        result = json.loads(self._lines.readline())["result"]
        assert not result["isError"], result
        return result["structuredContent"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def _client(path: Path) -> Generator[RawClient]:
    client = RawClient(path)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _echo_server(path: Path) -> Generator[int]:
    process = subprocess.Popen([sys.executable, ECHO, path], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.terminate()
        process.communicate()


def _fill(client: RawClient, tasks: int) -> str:
    """Store so many tasks; the id of one in the middle."""
    ids: list[str] = []
    for first in range(0, tasks, 1000):
        specs = [{"title": f"task {n}"} for n in range(first, min(first + 1000, tasks))]
        answer = client.call("graph_submit", {"tasks": specs})
        ids += [task["task_id"] for task in answer["tasks"]]
    return ids[len(ids) // 2]


def test_task_get_against_a_bare_echo(tmp_path: Path, whole: bool) -> None:
    tasks, rounds, calls = (10_000, 5, 1000) if whole else (200, 1, 20)
    echo = tmp_path / "echo"
    with (
        running_daemon(tmp_path / "state") as daemon,
        _echo_server(echo) as echo_pid,
        _client(daemon.socket) as ours,
        _client(echo) as floor,
    ):
        task_id = _fill(ours, tasks)
        ratios: list[float] = []
        cpu: list[float] = []
        mine: list[float] = []
        bare: list[float] = []
        for _ in range(rounds):
            started = cpu_of(daemon.pid)
            mine = [_timed(ours, "task_get", {"task_id": task_id}) for _ in range(calls)]
            between = cpu_of(echo_pid)
            used = cpu_of(daemon.pid) - started
            bare = [_timed(floor, "echo", {"text": "x"}) for _ in range(calls)]
            cpu.append(used / max(cpu_of(echo_pid) - between, 0.01))
            ratios.append(statistics.median(mine) / statistics.median(bare))
    tell(
        f"MCP task_get, {tasks:,} tasks stored",
        f"p50 {median_ms(mine):.3f} ms",
        floor=f"p50 {median_ms(bare):.3f} ms, an SDK echo tool",
        ratio=f"{statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f}), "
        f"{statistics.median(cpu):.2f}x CPU",
        aim="1.3 or less",
    )
    assert len(ratios) == rounds


def test_task_get_by_http_against_a_stream(tmp_path: Path, whole: bool) -> None:
    calls = 300 if whole else 20
    with running_daemon(tmp_path / "state") as daemon, _client(daemon.socket) as lines:
        task_id = _fill(lines, 1)
        place = doors.Place(daemon.socket, daemon.tcp or "")
        asked = json.dumps({"task_id": task_id}).encode()
        doors_open = {"MCP by HTTP": doors.streamable, "a stream of its own": doors.stream}
        took: dict[str, list[float]] = {}
        cpu: dict[str, float] = {}
        for name, door in doors_open.items():
            began_s, took[name] = cpu_of(daemon.pid), []
            for _ in range(calls):
                started = time.perf_counter()
                assert door(place, None, "task_get", asked).code == "ok"
                took[name].append(time.perf_counter() - started)
            cpu[name] = cpu_of(daemon.pid) - began_s
    ours, floor = took.values()
    tell(
        "MCP task_get by HTTP, a connection each",
        f"p50 {median_ms(ours):.3f} ms",
        floor=f"p50 {median_ms(floor):.3f} ms, by a stream each",
        ratio=f"{statistics.median(ours) / statistics.median(floor):.2f}, "
        f"{cpu['MCP by HTTP'] / max(cpu['a stream of its own'], 0.01):.2f}x CPU",
        aim="3 or less",
    )


def _timed(client: RawClient, tool: str, arguments: dict[str, Any]) -> float:
    started = time.perf_counter()
    client.call(tool, arguments)
    return time.perf_counter() - started


def test_start_and_memory(tmp_path: Path, whole: bool) -> None:
    tasks, rounds = (10_000, 5) if whole else (100, 1)
    state = tmp_path / "state"
    with running_daemon(state) as daemon, _client(daemon.socket) as client:
        _fill(client, tasks)
    starts: list[float] = []
    firsts: list[float] = []
    memory = 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        with running_daemon(state) as daemon:
            starts.append(time.perf_counter() - started)
            with _client(daemon.socket) as client:
                client.call("task_list", {"limit": 1})
                firsts.append(time.perf_counter() - started)
                memory = rss_mib(daemon.pid)
    imports = [_import_sdk() for _ in range(rounds)]
    tell(
        f"start to READY with {tasks:,} tasks",
        f"p50 {statistics.median(starts):.2f} s",
        floor=f"{statistics.median(imports):.2f} s to import the MCP SDK alone",
        ratio=f"{statistics.median(starts) / statistics.median(imports):.2f}",
        aim="under 2 s",
    )
    tell("  start to the first MCP answer", f"p50 {statistics.median(firsts):.2f} s")
    tell("resident memory, idle, MCP loaded", f"{memory:.0f} MiB")
    assert memory > 0


def _import_sdk() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mcp.server.mcpserver"], check=True)
    return time.perf_counter() - started


def test_the_bridge_costs_little(tmp_path: Path, whole: bool) -> None:
    rounds = 20 if whole else 2
    command = [Path(sys.executable).with_name("microvm-orchestrator"), "connect", "--socket"]
    durations: list[float] = []
    memory = 0.0
    with running_daemon(tmp_path / "state") as daemon:
        for turn in range(rounds):
            started = time.perf_counter()
            bridge = subprocess.Popen(
                [*command, daemon.socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert bridge.stdin is not None
            assert bridge.stdout is not None
            ping = {"jsonrpc": "2.0", "id": turn, "method": "server/discover"}
            line = json.dumps({**ping, "params": {"_meta": META}}).encode() + b"\n"
            bridge.stdin.write(line)
            bridge.stdin.flush()
            assert json.loads(bridge.stdout.readline())["id"] == turn
            durations.append(time.perf_counter() - started)
            memory = max(memory, rss_mib(bridge.pid))
            bridge.communicate()
            assert bridge.returncode == os.EX_OK
    tell(
        "connect: from the start to the first answer",
        f"p50 {median_ms(durations):.0f} ms",
        aim="under 150 ms",
    )
    tell("  resident memory", f"{memory:.1f} MiB", aim="under 15 MiB")
    tell("  slowest tenth", f"p95 {p95_ms(durations):.0f} ms")
