"""What the userspace switch costs above a relay that only copies what it reads, in one run."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread

import frames
from bench.figures import Stopwatch, Timed, tell
from microvm_orchestrator.machine import sockets
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Network
from microvm_orchestrator.network.switch import open_switch

BARE = Network("bare")
PEER = Path(__file__).with_name("frame_peer.py")
MIB = 1 << 20
FULL, SMALL = 1514, 60


class Peers:
    """Two processes at the ends of two links."""

    def __init__(
        self, stack: ExitStack, folder: Path, roles: tuple[str, str], how: list[str]
    ) -> None:
        self.ports = [assign(BARE, "one"), assign(BARE, "two")]
        self.paths = [folder / f"link{number}" for number in range(len(roles))]
        self._processes: list[subprocess.Popen[bytes]] = []
        for role, path, (by, to) in zip(
            roles, self.paths, (self.ports, self.ports[::-1]), strict=True
        ):
            with sockets.listen(path) as listener:
                ends = [frames.mac(to).hex(), frames.mac(by).hex()]
                words = [sys.executable, "-I", "-S", PEER, role, str(listener.fileno()), *ends]
                process = subprocess.Popen(
                    [*words, *how],
                    pass_fds=(listener.fileno(),),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            stack.enter_context(process)
            stack.callback(process.kill)
            self._processes.append(process)

    def start(self) -> None:
        for process in self._processes:
            assert process.stdin
            process.stdin.write(b"go\n")
            process.stdin.flush()

    async def took(self) -> Timed:
        """Measure from the start until the first of them has done its part."""

        def wait() -> float:
            stdout = self._processes[0].stdout
            assert stdout
            return float(stdout.readline())

        with Stopwatch() as watch:
            self.start()
            wall_s = await anyio.to_thread.run_sync(wait)
        return Timed(wall_s, watch.timed.cpu_s)


@contextmanager
def peers(folder: Path, roles: tuple[str, str], count: int, size: int) -> Generator[Peers]:
    with ExitStack() as stack:
        yield Peers(stack, folder, roles, [str(count), str(size)])


@asynccontextmanager
async def switched(each: Peers) -> AsyncGenerator[None]:
    async with open_switch() as networks:
        await networks.make(BARE)
        for port, path in zip(each.ports, each.paths, strict=True):
            await networks.prepare(port)
            await networks.connect(port, path)
        yield
        assert (await networks.usage(each.ports[1])).dropped == 0


async def copy(source: socket.socket, target: socket.socket) -> None:
    while True:
        await anyio.wait_readable(source)
        data = source.recv(1 << 16)
        if not data:
            return
        while data:
            try:
                data = data[target.send(data) :]
            except BlockingIOError:
                await anyio.wait_writable(target)


@asynccontextmanager
async def relayed(each: Peers) -> AsyncGenerator[None]:
    one, two = (sockets.dial(path) for path in each.paths)
    with one, two:
        async with anyio.create_task_group() as group:
            group.start_soon(copy, one, two)
            group.start_soon(copy, two, one)
            yield
            group.cancel_scope.cancel()


async def compared(
    folder: Path, roles: tuple[str, str], count: int, size: int, rounds: int
) -> tuple[list[Timed], list[Timed]]:
    ours: list[Timed] = []
    floor: list[Timed] = []
    for _ in range(rounds):
        for between, taken in ((switched, ours), (relayed, floor)):
            with peers(folder, roles, count, size) as each:
                async with between(each):
                    taken.append(await each.took())
    return ours, floor


def median(taken: list[Timed]) -> Timed:
    return Timed(
        statistics.median(each.wall_s for each in taken),
        statistics.median(each.cpu_s for each in taken),
    )


async def test_frames_one_way_against_a_relay(tmp_path: Path, *, whole: bool) -> None:
    count = 200_000 if whole else 12_800
    for size in (FULL, SMALL):
        ours, floor = map(
            median, await compared(tmp_path, ("send", "take"), count, size, 9 if whole else 1)
        )
        sent = count * size / MIB
        tell(
            f"frames of {size} bytes through the switch",
            f"{sent / ours.wall_s:.0f} MiB/s",
            floor=f"{sent / floor.wall_s:.0f} MiB/s",
            ratio=f"{ours.wall_s / floor.wall_s:.2f}",
        )
        tell(
            "  CPU of the switch",
            f"{ours.cpu_s / count * 1e6:.2f} us a frame",
            floor=f"{floor.cpu_s / count * 1e6:.2f} us",
            ratio=f"{ours.cpu_s / floor.cpu_s:.2f}",
        )


async def test_round_trips_against_a_relay(tmp_path: Path, *, whole: bool) -> None:
    count = 10_000 if whole else 500
    ours, floor = map(
        median, await compared(tmp_path, ("ask", "echo"), count, SMALL, 9 if whole else 1)
    )
    tell(
        "a small frame there and back",
        f"{ours.wall_s / count * 1e6:.0f} us",
        floor=f"{floor.wall_s / count * 1e6:.0f} us",
        ratio=f"{ours.wall_s / floor.wall_s:.2f}",
    )


async def test_others_wait_this_long_while_a_machine_floods(tmp_path: Path, *, whole: bool) -> None:
    """Of whatever else the daemon does: how late a task of its loop gets its turn."""
    rounds = 2000 if whole else 100
    with peers(tmp_path, ("flood", "flood"), 0, SMALL) as each:
        async with open_switch() as networks:
            await networks.make(BARE)
            for port, path in zip(each.ports, each.paths, strict=True):
                await networks.prepare(port)
                await networks.connect(port, path)
            each.start()
            for port in each.ports:
                while (await networks.usage(port)).tx_packets < 10_000:
                    await anyio.lowlevel.checkpoint()
            late: list[float] = []
            for _ in range(rounds):
                began = time.perf_counter()
                await anyio.lowlevel.checkpoint()
                late.append(time.perf_counter() - began)
    turn = f"p50 {statistics.median(late) * 1000:.2f} ms, max {max(late) * 1000:.1f} ms"
    tell("a turn of the loop while two machines flood", turn)
