"""What the ways into a guest cost above a bare socket, a bare spawn and a bare copy, and others'.

The real agent as a process of this host, so no hypervisor is in any figure. Each round measures
both sides, one after the other.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import anyio

from bench.acts import fetch, run_true
from bench.figures import Side, compare, cpu_of, cpu_of_all, median_ms, tell
from bench.others import bare_ssh, swe_rex
from bench.raw import raw_socket
from guests import on_socketpair
from sshd import Sshd, set_up_sshd

MIB = 1 << 20


async def spawn() -> None:
    # It is this process's CPU that is counted here, so it may as well stand still.
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


async def test_round_trips_against_an_echo_and_a_spawn(tmp_path: Path, *, whole: bool) -> None:
    rounds = 100 if whole else 2
    async with on_socketpair() as (shell, agent), raw_socket(tmp_path / "file") as raw:
        await compare(
            "ping, no VM",
            Side(shell.ping, lambda: cpu_of(agent.pid)),
            Side(raw.echo, raw.cpu_s),
            rounds,
            times=20,
            against="an echo on a bare socket",
        )
        await compare(
            "exec true, no VM",
            Side(lambda: run_true(shell), lambda: cpu_of(agent.pid)),
            Side(spawn, lambda: 0.0),
            rounds,
            times=20,
            against="a bare spawn",
        )


async def test_fifty_megabytes_against_a_bare_copy(tmp_path: Path, *, whole: bool) -> None:
    size, rounds = (50 * MIB, 15) if whole else (5 * MIB, 1)
    content, path = os.urandom(size), str(tmp_path / "ours")
    async with on_socketpair() as (shell, agent), raw_socket(tmp_path / "raw") as raw:
        await compare(
            f"{size // MIB} MiB in, no VM",
            Side(lambda: shell.put(path, content), lambda: cpu_of(agent.pid)),
            Side(lambda: raw.put(content), raw.cpu_s),
            rounds,
            against="a bare copy",
        )
        await compare(
            f"{size // MIB} MiB out, no VM",
            Side(lambda: fetch(shell, path, size), lambda: cpu_of(agent.pid)),
            Side(lambda: raw.get(size), raw.cpu_s),
            rounds,
            against="a bare copy",
        )


def cpu_of_latest(server: Sshd) -> float:
    """Tell what the process of the connection that was opened last has used."""
    return cpu_of_all(server.processes[-1].pid)


async def test_exec_against_bare_asyncssh(tmp_path: Path, *, whole: bool) -> None:
    """Each on a connection that stays; both of SSH to processes of the same server."""
    rounds = 50 if whole else 1
    server, floor_server = set_up_sshd(tmp_path / "sshd"), set_up_sshd(tmp_path / "floor")
    async with (
        on_socketpair() as (ours, agent),
        server.shell(within_s=600) as over_ssh,
        floor_server.serving() as sock,
        bare_ssh(sock, floor_server.login) as bare,
    ):
        floor = Side(bare.run_true, lambda: cpu_of_latest(floor_server))
        await compare(
            "exec true over our SSH, no VM",
            Side(lambda: run_true(over_ssh), lambda: cpu_of_latest(server)),
            floor,
            rounds,
            times=20,
            against="bare asyncssh to OpenSSH, no VM",
        )
        await compare(
            "exec true by our agent, no VM",
            Side(lambda: run_true(ours), lambda: cpu_of(agent.pid)),
            floor,
            rounds,
            times=20,
            against="bare asyncssh to OpenSSH, no VM",
        )


async def test_exec_against_swe_rex(tmp_path: Path, *, whole: bool) -> None:
    async with swe_rex(tmp_path) as rex, on_socketpair() as (shell, agent):
        await compare(
            "exec true by our agent, no VM",
            Side(lambda: run_true(shell), lambda: cpu_of(agent.pid)),
            Side(rex.run_true, rex.cpu_s),
            10 if whole else 1,
            times=5,
            against="SWE-ReX run_in_session, its LocalRuntime, no VM",
            aim="0.20",
        )


async def test_an_agent_is_there_soon(*, whole: bool) -> None:
    """From nothing to its answer, against an interpreter that only starts and ends."""
    walls: list[float] = []
    floors: list[float] = []
    for _ in range(20 if whole else 3):
        started = time.perf_counter()
        async with on_socketpair():
            walls.append(time.perf_counter() - started)
        started = time.perf_counter()
        await anyio.run_process([sys.executable, "-I", "-S", "-c", "import os"])
        floors.append(time.perf_counter() - started)
    tell(
        "agent's start to its HELLO, against python's",
        f"p50 {median_ms(walls):.1f} ms",
        floor=f"p50 {median_ms(floors):.1f} ms",
        ratio=f"{statistics.median(walls) / statistics.median(floors):.2f}",
    )
