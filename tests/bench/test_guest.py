"""What reaching a real guest costs above the channel itself, above SSH, and against others'.

One guest under emulation with three virtio ports: our agent is behind one, a process that only does
as it is told behind another, an OpenSSH server behind the third. So no side has a network in its
way, and each round measures both of two, one after the other. CPU is that of the whole QEMU and of
this process.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bare_qemu import Bare, booting
from bench.acts import fetch, run_true
from bench.figures import Side, compare
from bench.others import BareSsh, bare_ssh, swe_rex
from bench.raw import Raw, find_device, raw_port
from machines import CACHE
from microvm_orchestrator.images.build import ImageSpec, build
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.machine.shell import Command, Shell
from microvm_orchestrator.machine.sockets import dial
from microvm_orchestrator.machine.ssh import Login, keep_keys

MIB = 1 << 20

# With a port for its standard input and output the server missed a moment in which it could go on,
# once in some hundred commands, and both sides waited for ever.
_SSHD = """
set -e
mkdir -p /run/sshd
echo 'sshd:x:100:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd
exec 3<>"$1"
cat <&3 | /usr/sbin/sshd -i -e -f /var/sshd/config | cat >&3
"""
_CONFIG = """
HostKey /var/sshd/host
AuthorizedKeysFile /var/sshd/authorized
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
LogLevel ERROR
"""


@dataclass(frozen=True, slots=True)
class Reached:
    """The guest, and the ways into it."""

    bare: Bare
    shell: Shell
    raw: Raw

    def side(self, act: Callable[[], Awaitable[object]]) -> Side:
        return Side(act, self.bare.cpu_s)


@pytest.fixture(scope="module")
async def guest(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Reached]:
    spec = ImageSpec("with-sshd", packages=("openssh-server",))
    image = await build(spec, ImageStore(CACHE / "images"), CACHE / "build")
    folder = tmp_path_factory.mktemp("guest")
    async with (
        booting(folder, image, memory_mib=512, ports=("raw", "ssh")) as bare,
        bare.shell() as shell,
        raw_port(shell, bare.ports["raw"], "/var/raw") as raw,
    ):
        yield Reached(bare, shell, raw)


@asynccontextmanager
async def ssh_into(guest: Reached, folder: Path) -> AsyncGenerator[BareSsh]:
    """Start an OpenSSH server on its port, and connect to it."""
    keys = keep_keys(folder / "keys", "guest")
    for name, content in {
        "config": _CONFIG.encode(),
        "host": keys.host.private,
        "authorized": keys.client.public.encode(),
    }.items():
        path = f"/var/sshd/{name}"
        await guest.shell.put(path, content, mode=0o600, parents=True)
    server = ["/bin/sh", "-c", _SSHD, "sh", await find_device(guest.shell, "ssh")]
    with dial(guest.bare.ports["ssh"]) as sock:
        async with (
            guest.shell.stream(Command(server), stdin=False),
            bare_ssh(sock, Login("root", keys.client, (keys.host.public,))) as ssh,
        ):
            yield ssh


async def test_round_trips_against_a_bare_port(guest: Reached, *, whole: bool) -> None:
    rounds, times = (50, 20) if whole else (1, 10)
    echo, spawn = guest.side(guest.raw.echo), guest.side(guest.raw.spawn)
    ping, exec_true = guest.side(guest.shell.ping), guest.side(lambda: run_true(guest.shell))
    for name, ours, floor, against, aim in (
        ("ping of a guest", ping, echo, "an echo on a bare port of it", "1.5"),
        ("exec true in a guest", exec_true, echo, "an echo on a bare port of it", ""),
        ("exec true in a guest", exec_true, spawn, "a bare port of it to a bare spawn", "1.5"),
    ):
        await compare(name, ours, floor, rounds, times=times, against=against, aim=aim)


async def test_exec_against_ssh(guest: Reached, tmp_path: Path, *, whole: bool) -> None:
    async with ssh_into(guest, tmp_path) as ssh:
        await compare(
            "exec true in a guest",
            guest.side(lambda: run_true(guest.shell)),
            guest.side(ssh.run_true),
            20 if whole else 1,
            times=10,
            against="bare asyncssh to OpenSSH in it, behind a bare port",
        )


async def test_exec_against_swe_rex(guest: Reached, tmp_path: Path, *, whole: bool) -> None:
    async with swe_rex(tmp_path) as rex:
        await compare(
            "exec true in a guest",
            guest.side(lambda: run_true(guest.shell)),
            Side(rex.run_true, rex.cpu_s),
            10 if whole else 1,
            times=5,
            against="SWE-ReX run_in_session, its LocalRuntime, no VM",
            aim="0.20",
        )


async def test_fifty_megabytes_against_a_bare_port(guest: Reached, *, whole: bool) -> None:
    size, rounds = (50 * MIB, 9) if whole else (5 * MIB, 1)
    content = os.urandom(size)
    await compare(
        f"{size // MIB} MiB into a guest",
        guest.side(lambda: guest.shell.put("/var/ours", content)),
        guest.side(lambda: guest.raw.put(content)),
        rounds,
        against="a bare port of it",
    )
    await compare(
        f"{size // MIB} MiB out of a guest",
        guest.side(lambda: fetch(guest.shell, "/var/ours", size)),
        guest.side(lambda: guest.raw.get(size)),
        rounds,
        against="a bare port of it",
    )
