"""What only our own agent promises: memory, other hosts, a host that was killed, being PID 1."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from guests import AGENTS, Guest, LocalGuest, behind_device, behind_socket, on_socketpair
from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.link import Link
from microvm_orchestrator.machine.channel.requests import ask
from microvm_orchestrator.machine.shell import Command, Exit, Shell, Unix
from microvm_orchestrator.together import beside

SOON_S = 60.0
# Above what either side needs for a window of each of the few streams here, and much below a flood.
GROWTH_KIB = 24_000
SLICE = 100_000_000
WHOLE = 1_000_000_000


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncGenerator[LocalGuest]:
    with anyio.fail_after(SOON_S):
        async with behind_socket(tmp_path) as guest:
            yield guest


def sh(script: str, **more: object) -> Command:
    return Command(["/bin/sh", "-c", script], **more)  # type: ignore[arg-type]  # named as the fields are


def resident_kib() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])


async def until_it_breaks(shell: Shell) -> None:
    while True:
        await shell.ping()


async def settled(shell: Shell) -> None:
    while any(job.running for job in await shell.jobs()):
        await shell.ping()


async def test_a_flood_of_output_makes_neither_side_grow(guest: LocalGuest, *, whole: bool) -> None:
    size = WHOLE if whole else SLICE
    async with guest.shell() as shell:
        await shell.exec(sh("echo warm"))
        agent, host = guest.resident_kib(), resident_kib()
        ran = await shell.exec(Command(["head", "-c", str(size), "/dev/zero"]), output_cap=1000)
        assert (ran.exit, len(ran.stdout), ran.truncated) == (Exit(0), 1000, True)
        assert guest.resident_kib() - agent < GROWTH_KIB
        assert resident_kib() - host < GROWTH_KIB


async def test_a_flood_of_single_bytes_makes_neither_side_grow(guest: LocalGuest) -> None:
    script = "import os\nfor _ in range(100_000): os.write(1, b'x'); os.write(2, b'y')"
    async with guest.shell() as shell:
        await shell.exec(sh("echo warm"))
        agent, host = guest.resident_kib(), resident_kib()
        async with shell.stream(Command([sys.executable, "-c", script])) as process:
            size = len((await anext(aiter(process))).data)
            # Nobody reads: it fills its window, and then its pipe.
            for _ in range(300):
                await shell.ping()
            assert guest.resident_kib() - agent < GROWTH_KIB
            assert resident_kib() - host < GROWTH_KIB
            size += sum([len(output.data) async for output in process])
            assert (await process.wait(), size) == (Exit(0), 200_000)


async def test_floods_that_nobody_reads_make_neither_side_grow(guest: LocalGuest) -> None:
    async with guest.shell() as shell, anyio.create_task_group() as group:

        async def stand_still(started: anyio.Event) -> None:
            async with shell.stream(Command(["yes"])) as process:
                await anext(aiter(process))
                started.set()
                await anyio.sleep_forever()

        agent, host = guest.resident_kib(), resident_kib()
        for _ in range(32):
            started = anyio.Event()
            group.start_soon(stand_still, started)
            await started.wait()
        assert (await shell.exec(sh("echo through"))).stdout == b"through\n"
        windows = 32 * 2 * wire.WINDOW // 1024
        assert guest.resident_kib() - agent < GROWTH_KIB + windows
        assert resident_kib() - host < GROWTH_KIB + windows
        group.cancel_scope.cancel()
    async with guest.shell() as shell:
        await settled(shell)


async def test_a_command_that_nobody_follows_is_held_back_after_a_window(guest: LocalGuest) -> None:
    async with guest.shell() as shell:
        async with shell.stream(Command(["yes"]), exec_id="flood", keep=True):
            pass
        sizes = [-1, -2]
        with anyio.fail_after(SOON_S):
            # On a busy host it says nothing for a while before it is held back.
            while sizes[-1] != sizes[-2] or sizes[-1] <= wire.WINDOW // 2:
                for _ in range(20):
                    await shell.ping()
                sizes.append((await shell.jobs())[0].offset)
        assert sizes[-1] < 4 * wire.WINDOW
        async with shell.attach("flood", keep=False):
            pass
        await settled(shell)


FOLLOWER = """
import sys
import anyio
from microvm_orchestrator.machine.channel import open_shell
from microvm_orchestrator.machine.shell import Command

async def main(path, log, script):
    async with await anyio.connect_unix(path) as transport, open_shell(transport) as shell:
        command = Command(["/bin/sh", "-c", script])
        async with shell.stream(command, exec_id="task", keep=True) as process:
            with open(log, "ab", buffering=0) as file:
                async for output in process:
                    file.write(output.data)

anyio.run(main, *sys.argv[1:])
"""


@pytest.mark.parametrize("lines", [100, 40_000], ids=["a pause", "a flood"])
async def test_a_command_goes_on_and_is_found_again_when_its_host_is_killed(
    guest: LocalGuest, tmp_path: Path, lines: int
) -> None:
    """The new host says how much it has on its disk, and misses and repeats nothing."""
    log, go = tmp_path / "log", tmp_path / "go"
    os.mkfifo(go)
    log.touch()
    count = f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo $i; done"
    script = f"{count}; read x <{go}; echo $x; exit 7"
    path = str(guest.folder.parent / "agent.socket")
    words = [sys.executable, "-c", FOLLOWER, path, str(log), script]
    with subprocess.Popen(words) as host:  # it is to be killed, not waited for
        while log.stat().st_size < 200:
            assert host.poll() is None
            await anyio.lowlevel.checkpoint()
        host.kill()
    have = log.read_bytes()
    async with guest.shell() as shell:
        assert [job.running for job in await shell.jobs()] == [True]
        with pytest.raises(errors.AlreadyExists):
            await shell.exec(sh("true"), exec_id="task")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(anyio.Path(go).write_text, "went on\n"))
            async with shell.attach("task", offset=len(have)) as process:
                async for output in process:
                    assert output.offset == len(have)
                    have += output.data
                assert await process.wait() == Exit(7)
        await shell.forget("task")
        assert await shell.jobs() == []
    assert have == b"".join(b"%d\n" % line for line in range(1, lines + 1)) + b"went on\n"


async def test_a_host_that_comes_while_another_is_there_is_the_host(guest: LocalGuest) -> None:
    async with (
        guest.shell() as old,
        old.stream(sh("read x; exit 3"), exec_id="kept", keep=True) as process,
        guest.shell() as new,
    ):
        with pytest.raises(errors.MachineUnreachable):
            await old.ping()
        with pytest.raises(errors.UnknownOutcome, match="kept"):
            await process.wait()
        async with new.attach("kept", keep=False) as again:
            await again.send(b"\n")
            assert await again.wait() == Exit(3)


async def test_a_host_on_a_device_notices_that_another_agent_was_started(tmp_path: Path) -> None:
    """As systemd does where the agent is a service of its guest."""
    with anyio.fail_after(SOON_S):
        async with behind_device(tmp_path) as guest, guest.shell() as shell:
            identity = shell.guest.identity
            guest.process.kill()
            guest.process.wait()
            with subprocess.Popen(guest.process.args) as again:
                with pytest.raises(errors.MachineUnreachable, match="another agent"):
                    await until_it_breaks(shell)
                async with guest.shell() as anew:
                    assert anew.guest.identity != identity
                    await anew.shutdown()
                again.wait()


async def test_an_agent_on_a_socketpair_ends_with_it() -> None:
    async with on_socketpair() as (shell, process):
        await shell.ping()
    assert process.wait() == 0


async def test_a_socket_that_the_agent_listens_on_takes_no_files_place(
    guest: LocalGuest,
) -> None:
    path = guest.folder / "precious"
    path.write_text("precious")
    async with guest.shell() as shell:
        with pytest.raises(errors.GuestRefused, match="EADDRINUSE"):
            async with shell.reverse(Unix(str(path)), lambda stream: stream.aclose()):
                pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("kind", AGENTS)
async def test_a_guest_that_is_shut_down_ends_its_commands_and_says_so(
    tmp_path: Path, kind: str
) -> None:
    ending = "trap 'echo ending; exit 4' TERM; echo; while :; do sleep 0.01; done"
    with anyio.fail_after(SOON_S):
        async with AGENTS[kind](tmp_path) as guest:
            async with guest.shell() as shell, shell.stream(sh(ending)) as process:
                await anext(aiter(process))
                await shell.shutdown(reboot=True)
                output = b"".join([output.data async for output in process])
                assert b"ending\n" in output  # sleep may have its word too
                assert await process.wait() == Exit(4)
                assert (await anext(shell.events())).kind == "shutting_down"
            assert await anyio.to_thread.run_sync(guest.process.wait) == 64


async def test_a_busy_guest_refuses_the_next_command_and_keeps_what_it_has(
    guest: LocalGuest,
) -> None:
    async with guest.shell() as shell:
        for number in range(256):
            async with shell.stream(sh("exit 1"), exec_id=f"{number}", keep=True) as process:
                await process.wait()
        with pytest.raises(errors.Unavailable, match="256"):
            await shell.exec(sh("exit 2"))
        assert len(await shell.jobs()) == 256
        await shell.forget("17")
        assert (await shell.exec(sh("exit 2"))).exit == Exit(2)


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="namespaces need root and unshare"
)


def within(script: str, *namespaces: str) -> list[str]:
    """Return words that run a command in namespaces of its own, behind a script."""
    return ["unshare", "--mount", *namespaces, "sh", "-c", f'{script} && exec "$@"', "sh"]


@needs_root
async def test_as_pid_1_it_reaps_what_others_have_left_behind(tmp_path: Path) -> None:
    alone = within("mount -t proc proc /proc", "--pid", "--fork", "--kill-child")
    # The parent of a process that ends 0.2 s from now ends at once.
    orphan = "(sh -c 'sleep 0.2' & exec true); sleep 0.4"
    zombies = "cat /proc/[0-9]*/status | grep -c '^State:.Z'"
    async with behind_socket(tmp_path, within=alone) as guest, guest.shell() as shell:
        assert (await shell.exec(sh("echo $PPID"))).stdout == b"1\n"
        await shell.exec(sh(orphan))
        assert (await shell.exec(sh(zombies))).stdout == b"0\n"


@needs_root
async def test_a_disk_that_is_full_is_told_once_each_time(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    own = within(f"mount -t tmpfs -o size=1m none {disk}")
    options = f"disk={disk}", "look=0.05"
    with anyio.fail_after(SOON_S):
        async with behind_socket(tmp_path, *options, within=own) as guest, guest.shell() as shell:
            events = shell.events()
            for _ in range(2):
                await shell.exec(sh(f"cat /dev/zero >{disk}/fill"))
                assert (await anext(events)).kind == "disk_full"
                await shell.exec(sh(f"sleep 0.2; rm {disk}/fill; sleep 0.2"))


@needs_root
async def test_it_becomes_somebody_else_when_it_is_told_to(tmp_path: Path) -> None:
    """In namespaces of its own; the clock, which has none, is left alone."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\necho renewed >/etc/keys\n")
    hook.chmod(0o755)
    own = within(
        f"mount --bind {etc} /etc && ip tuntap add eth7 mode tap", "--uts", "--net", "--mount"
    )
    request: dict[str, int | bytes | list[bytes]] = {
        "verb": b"fresh",
        "entropy": os.urandom(64),
        "hostname": b"clone-7",
        "machine_id": b"0123456789abcdef" * 2,
        "interfaces": [b"eth7 52:54:00:12:34:56 10.7.0.2/24 10.7.0.1", b"lo - - -"],
        "hook": 1,
    }
    look = "cat /etc/hostname /etc/machine-id /etc/keys; ip -br addr; ip -br link; ip route"
    async with behind_socket(tmp_path, f"hook={hook}", within=own) as guest:
        async with linked(guest) as link:
            done = [b"entropy", b"hostname", b"machine_id", b"interfaces", b"hook"]
            assert (await ask(link, request))["done"] == done
        async with guest.shell() as shell:
            assert shell.guest.hostname == "clone-7"
            seen = (await shell.exec(sh(look))).stdout.decode()
    assert seen.splitlines()[:3] == ["clone-7", "0123456789abcdef" * 2, "renewed"]
    for word in ("10.7.0.2/24", "52:54:00:12:34:56", "default via 10.7.0.1 dev eth7"):
        assert word in seen


@needs_root
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"machine_id": b"short"}, errors.InvalidInput),
        ({"interfaces": [b"garbled"]}, errors.InvalidInput),
        ({"interfaces": [b"eth9 - 10.0.0.1/24 -"]}, errors.GuestRefused),
        ({"interfaces": [b"lo - 10.0.0.1/99 -"]}, errors.InvalidInput),
        ({"hook": 1}, errors.GuestRefused),
    ],
)
async def test_what_it_cannot_become_is_said(
    tmp_path: Path, fields: dict[str, int | bytes | list[bytes]], error: type[Exception]
) -> None:
    own = within("true", "--uts", "--net")
    async with (
        behind_socket(tmp_path, "hook=/bin/false", within=own) as guest,
        linked(guest) as link,
    ):
        with pytest.raises(error):
            await ask(link, {"verb": b"fresh", **fields})


@asynccontextmanager
async def linked(guest: Guest) -> AsyncGenerator[Link]:
    """Talk to an agent below `Shell`, which always sets the clock too."""
    async with guest.connect() as transport:
        link = Link(transport)
        async with beside(link.run):
            try:
                with anyio.fail_after(SOON_S):
                    await link.greeting()
                    yield link
            finally:
                link.fail(errors.MachineUnreachable("closed"))
