"""What the channel into a guest costs above a bare socket, a bare spawn and a bare copy.

The real agent as a process of this host, so no hypervisor is in either figure. The peers run the
same interpreter; each round measures both, one after the other.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import asyncssh
from anyio.abc import UNIXSocketStream

from bench.figures import Stopwatch, Timed, cpu_of, median_ms, tell
from guests import on_socketpair
from microvm_orchestrator.machine.shell import Command, Shell
from sshd import Sshd, set_up_sshd

SIZE = 50 << 20
CHUNK = 1 << 16
TRUE = Command(["/bin/true"])


@dataclass(frozen=True, slots=True)
class Raw:
    """A bare socket to a process that does as it is told."""

    stream: UNIXSocketStream
    pid: int

    async def echo(self) -> None:
        await self.stream.send(b"e".ljust(9, b"\0"))
        await self._receive(9)

    async def put(self, content: bytes) -> None:
        await self.stream.send(b"t" + SIZE.to_bytes(8, "big"))
        for at in range(0, len(content), CHUNK):
            await self.stream.send(content[at : at + CHUNK])
        await self._receive(9)

    async def get(self) -> None:
        await self.stream.send(b"g".ljust(9, b"\0"))
        await self._receive(SIZE)

    async def _receive(self, size: int) -> None:
        while size:
            size -= len(await self.stream.receive())


@asynccontextmanager
async def raw_socket(path: Path) -> AsyncGenerator[Raw]:
    ours, theirs = socket.socketpair()
    with theirs:
        program = Path(__file__).parent / "raw_socket.py"
        words = [sys.executable, "-I", "-S", program, str(theirs.fileno()), path]
        process = subprocess.Popen(words, pass_fds=(theirs.fileno(),))  # noqa: ASYNC220
    with process:
        async with await UNIXSocketStream.from_socket(ours) as stream:
            yield Raw(stream, process.pid)


async def measured(act: Callable[[], Awaitable[object]], pid: int) -> Timed:
    """Time an act: on the wall, and in CPU of both ends."""
    before = cpu_of(pid)
    with Stopwatch() as watch:
        await act()
    return Timed(watch.timed.wall_s, watch.timed.cpu_s + cpu_of(pid) - before)


async def compare(
    name: str,
    ours: Callable[[], Awaitable[Timed]],
    floor: Callable[[], Awaitable[Timed]],
    rounds: int,
) -> None:
    """Tell medians of both and of their ratio, round by round."""
    pairs = [(await ours(), await floor()) for _ in range(rounds)]
    walls = [[pair[side].wall_s for pair in pairs] for side in (0, 1)]
    cpus = [statistics.fmean(pair[side].cpu_s for pair in pairs) for side in (0, 1)]
    ratio = statistics.median(one.wall_s / other.wall_s for one, other in pairs)
    tell(
        name,
        f"p50 {median_ms(walls[0]):.2f} ms",
        floor=f"p50 {median_ms(walls[1]):.2f} ms",
        ratio=f"{ratio:.2f}",
    )
    tell("  CPU of both ends", f"{cpus[0] * 1000:.2f} ms", floor=f"{cpus[1] * 1000:.2f} ms")


async def spawn() -> None:
    # It is this process's CPU that is counted here, so it may as well stand still.
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)  # noqa: ASYNC221, ASYNC222


async def test_round_trips_against_an_echo_and_a_spawn(tmp_path: Path, *, whole: bool) -> None:
    rounds = 1000 if whole else 20

    async def batch(act: Callable[[], Awaitable[object]], pid: int) -> Timed:
        """So short that only several of them are seen in a process's CPU time."""
        times = 20

        async def several() -> None:
            for _ in range(times):
                await act()

        timed = await measured(several, pid)
        return Timed(timed.wall_s / times, timed.cpu_s / times)

    async with on_socketpair() as (shell, agent), raw_socket(tmp_path / "file") as raw:
        for name, act, floor in (
            ("ping against a bare echo", shell.ping, raw.echo),
            ("exec true against a bare spawn", lambda: shell.exec(TRUE), spawn),
        ):
            await compare(
                name,
                lambda act=act: batch(act, agent.pid),
                lambda floor=floor: batch(floor, raw.pid),
                rounds // 10,
            )


async def test_fifty_megabytes_against_a_bare_copy(tmp_path: Path, *, whole: bool) -> None:
    content = os.urandom(SIZE)
    rounds = 15 if whole else 1
    async with on_socketpair() as (shell, agent), raw_socket(tmp_path / "raw") as raw:
        path = str(tmp_path / "ours")
        await compare(
            "50 MiB in, against a bare copy",
            lambda: measured(lambda: shell.put(path, content), agent.pid),
            lambda: measured(lambda: raw.put(content), raw.pid),
            rounds,
        )
        await compare(
            "50 MiB out, against a bare copy",
            lambda: measured(lambda: fetch(shell, path), agent.pid),
            lambda: measured(raw.get, raw.pid),
            rounds,
        )


async def fetch(shell: Shell, path: str) -> None:
    size = 0
    async with shell.get(path, max_size=SIZE) as file:
        async for piece in file:
            size += len(piece)
    assert size == SIZE


@asynccontextmanager
async def bare_asyncssh(server: Sshd) -> AsyncGenerator[asyncssh.SSHClientConnection]:
    """Connect as the library's own documentation does, to a server like ours."""
    login = server.login
    async with (
        server.serving() as sock,
        asyncssh.connect(
            "guest",
            sock=sock,
            username=login.user,
            client_keys=[asyncssh.import_private_key(login.key.private)],
            known_hosts=([asyncssh.import_public_key(login.host_keys[0])], [], []),
            config=None,
            agent_path=None,
        ) as conn,
    ):
        yield conn


async def test_exec_over_ssh_against_bare_asyncssh(tmp_path: Path, *, whole: bool) -> None:
    """Each on a connection of its own to the same server, by turns."""
    server = set_up_sshd(tmp_path / "sshd")
    walls: dict[bool, list[float]] = {True: [], False: []}
    async with server.shell(within_s=600) as shell, bare_asyncssh(server) as conn:
        for number in range(2 * (1000 if whole else 20)):
            started = time.perf_counter()
            if ours := number % 2 == 0:
                assert (await shell.exec(TRUE)).exit.code == 0
            else:
                assert (await conn.run("/bin/true")).exit_status == 0
            walls[ours].append(time.perf_counter() - started)
    tell(
        "exec true over SSH, against bare asyncssh",
        f"p50 {median_ms(walls[True]):.2f} ms",
        floor=f"p50 {median_ms(walls[False]):.2f} ms",
        ratio=f"{statistics.median(walls[True]) / statistics.median(walls[False]):.2f}",
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
