"""An image with nothing of ours in it, in a real QEMU, reached through a port by its own sshd.

Kernel and root are those of a guest built here with Debian's openssh-server; its first program is
another one, which knows no agent and starts `sshd -i` at the port, anew for every connection. Each
test is a daemon of its own: the machine is adopted by one after the other.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import stat
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from machines import CACHE, LONG_S
from microvm_orchestrator import errors
from microvm_orchestrator.cpio import ALIGN, CpioWriter
from microvm_orchestrator.host import boot_of
from microvm_orchestrator.images import guest_files
from microvm_orchestrator.images.build import ImageSpec, build
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.machine.base import Boot
from microvm_orchestrator.machine.probe import probe
from microvm_orchestrator.machine.ssh import fingerprint
from microvm_orchestrator.machine.ssh.keys import make_key
from standin_runner import Wanted, make, qemu_command
from system.test_exec import MIB, Stage, screen, stage_in

MEMORY_MIB = 256
PACKAGES = ("openssh-server",)
# The first program of an image that was made by somebody else, up to where its way in is.
BEGINS = r"""#!/bin/sh
export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin
rm -rf /usr/lib/microvm-orchestrator
home=/root
mkdir -p /dev/pts /run $home/.ssh /usr/local/sbin
mount -t tmpfs -o mode=755 run /run
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
ip link set lo up
echo sshd:x:101:65534::/run/sshd:/usr/sbin/nologin >>/etc/passwd
mkdir -p /run/sshd
printf '#!/bin/sh\nsync\necho o >/proc/sysrq-trigger\n' >/usr/local/sbin/poweroff
chmod 755 /usr/local/sbin/poweroff
echo "the guest is foreign" >/dev/console
"""
# While there is /run/no-sshd, nobody listens at the port.
INIT = (
    BEGINS
    + r"""
cp /foreign/authorized $home/.ssh/authorized_keys
for port in /sys/class/virtio-ports/*; do
    read -r name <$port/name
    [ "$name" = ssh ] && device=/dev/${port##*/}
done
while :; do
    while [ -e /run/no-sshd ]; do sleep 1; done
    /usr/sbin/sshd -i -e -f /foreign/config <>$device >&0 2>>/dev/console
done
"""
)
CONFIG = "HostKey /foreign/host\nUsePAM no\nPidFile none\nLogLevel ERROR\n"
HANDS_OVER = b"exec /bin/busybox switch_root /new /usr/sbin/init"
# In the guest's first root: another first program, and what it needs.
# What lies there of an earlier boot may be half, if that ended by a power cut.
INSTEAD = b"""\
rm -rf /new/foreign
cp -r /foreign /new/foreign
exec /bin/busybox switch_root /new /foreign/init"""


async def parts(folder: Path) -> tuple[Boot, int]:
    """Build what a foreign image is made of; tell the speed of the clock, which it needs here."""
    image = await build(ImageSpec("ssh", PACKAGES), ImageStore(CACHE / "images"), CACHE / "build")
    boot = boot_of(image)
    assert isinstance(boot, Boot)
    return boot, (await probe(folder)).tsc_khz or 0


def first_root(boot: Boot, files: Mapping[str, tuple[bytes, int]]) -> bytes:
    """Write a first root that comes behind the image's own, and replaces what it says.

    `files` are those of another first program, `init`, with their modes.
    """
    init, _ = guest_files.read_folder(guest_files.INITRD)["init"]
    out = io.BytesIO(boot.initrd.read_bytes())
    out.seek(0, os.SEEK_END)
    out.write(bytes(-out.tell() % ALIGN))
    writer = CpioWriter(out)
    writer.add("foreign", stat.S_IFDIR | 0o755, 0, [])
    given = {f"foreign/{name}": file for name, file in files.items()}
    changed = {"init": (handing_over(init), 0o755), **given}
    for path, (content, mode) in changed.items():
        writer.add(path, stat.S_IFREG | mode, len(content), [content])
    writer.end()
    return out.getvalue()


def handing_over(init: bytes) -> bytes:
    """Let the guest's first program hand over to another one."""
    assert HANDS_OVER in init
    return init.replace(HANDS_OVER, INSTEAD)


def make_runner(folder: Path, boot: Boot, tsc_khz: int, initrd: bytes) -> Path:
    folder.mkdir()
    (folder / "initrd").write_bytes(initrd)
    words = f"{boot.cmdline} nokaslr tsc_early_khz={tsc_khz} tsc=reliable"
    changed = replace(boot, initrd=folder / "initrd")
    command = qemu_command(changed, words, memory_mib=MEMORY_MIB, vcpus=1)
    return make(folder / "made", Wanted(command=command))


def done(stage: Stage, call: str, **arguments: Any) -> dict[str, Any]:
    operation = stage.ask(call, wait_s=LONG_S, **arguments)
    assert operation["state"] == "succeeded", operation
    result: dict[str, Any] = operation["result"]
    return result


@contextmanager
def foreign_in(folder: Path) -> Generator[Path]:
    """Let a machine `box` of a foreign image run, whatever becomes of the daemons on its state."""
    boot, tsc_khz = anyio.run(parts, folder)
    host = make_key("host")
    state = folder / "state"
    state.mkdir(mode=0o700)
    empty = make_runner(folder / "empty", boot, tsc_khz, boot.initrd.read_bytes())
    with stage_in(state) as stage:
        # As the guide says: added once to learn the key, and again with the key in it.
        told = done(stage, "image_add", name="guest", runner=str(empty), ssh_user="root")
        files = {
            "init": (INIT.encode(), 0o755),
            "config": (CONFIG.encode(), 0o644),
            "authorized": (f"{told['ssh_authorized_key']}\n".encode(), 0o600),
            "host": (host.private, 0o600),
        }
        initrd = first_root(boot, files)
        runner = make_runner(folder / "foreign", boot, tsc_khz, initrd)
        done(stage, "image_add", name="guest", runner=str(runner), ssh_user="root")
        other = make_key("other").public
        done(
            stage,
            "image_add",
            name="another",
            runner=str(runner),
            ssh_user="root",
            ssh_host_key=other,
        )
        stage.ask("machine_define", name="box", image="guest")
        done(stage, "machine_start", machine="box")
        stage.ask("machine_define", name="mistaken", image="another")
        mistaken = stage.ask("machine_start", machine="mistaken", wait_s=LONG_S)
        assert mistaken["state"] == "failed"
        for key in (host.public, other):
            assert fingerprint(key) in mistaken["error"]["message"]
    try:
        yield state
    finally:
        with stage_in(state) as stage, contextlib.suppress(errors.StateForbids):
            stage.ask("machine_kill", machine="box")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with foreign_in(tmp_path_factory.mktemp("foreign")) as state:
        yield state


@pytest.fixture
def stage(state: Path) -> Iterator[Stage]:
    with stage_in(state) as stage:
        yield stage


@pytest.mark.long
def test_commands_run_in_an_image_that_has_nothing_of_ours(stage: Stage) -> None:
    looks = "ls /usr/lib/microvm-orchestrator; cat /proc/1/cmdline; ls /sys/class/net"
    seen = stage.run(script=looks)
    assert "foreign/init" in seen["stdout"]
    assert seen["stdout"].endswith("\0lo\n")
    assert "No such file" in seen["stderr"]
    script = 'cat; echo "$X $PWD $(id -un)"; echo err >&2; exit 3'
    told = stage.run(script=script, stdin="in ", env={"X": "é"}, cwd="/usr")
    assert (told["stdout"], told["stderr"]) == ("in é /usr root\n", "err\n")
    assert told["exit_code"] == 3
    slow = stage.run(script="echo begun; sleep 1000", timeout_s=2.0)
    assert (slow["stdout"], slow["timed_out"]) == ("begun\n", True)
    assert stage.run(script="kill -USR1 $$")["signal"] == signal.SIGUSR1
    piped = stage.cli("machine", "exec", "box", "--", "cat", data=bytes(MIB))
    assert piped.stdout == bytes(MIB)
    usage = stage.ask("machine_usage", machine="box")
    assert 0 < usage["guest"]["memory_total_kib"] < MEMORY_MIB << 10


def test_a_shell_has_a_terminal_there(stage: Stage) -> None:
    with screen(stage.words("machine", "shell", "box", "--", "sh")) as here:
        here.type("stty size; tty\n")
        here.shows(r"30 100\r\n/dev/pts/")
        here.resize(40, 120)
        here.type("stty size\n")
        here.shows(r"40 120")
        here.type("exit 6\n")
        assert here.ended() == 6


def test_files_and_trees_travel_both_ways(stage: Stage, tmp_path: Path) -> None:
    data = os.urandom(MIB)
    assert stage.cli("machine", "cp", "-", "box:/tmp/file", data=data).returncode == 0
    assert stage.cli("machine", "cp", "box:/tmp/file", "-").stdout == data
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a" / "run").write_bytes(b"#!/bin/sh\n")
    (source / "a" / "run").chmod(0o755)
    (source / "odd\nname").write_bytes(data)
    assert stage.cli("machine", "cp", "-r", str(source), "box:/tmp/there").returncode == 0
    assert stage.run(argv=["stat", "-c", "%a", "/tmp/there/a/run"])["stdout"] == "755\n"
    fetched = stage.cli("machine", "cp", "-r", "box:/tmp/there", str(tmp_path / "back"))
    assert fetched.returncode == 0, fetched
    assert (tmp_path / "back" / "odd\nname").read_bytes() == data
    assert (tmp_path / "back" / "a" / "run").read_bytes() == b"#!/bin/sh\n"


def test_a_server_that_is_killed_leaves_a_machine_that_runs_and_is_met_again(stage: Stage) -> None:
    kill = "(sleep 1; pkill -KILL -x sshd; sleep 3; rm /run/no-sshd) </dev/null >/dev/null 2>&1 &"
    boot_id = stage.run(argv=["cat", "/proc/sys/kernel/random/boot_id"])["stdout"]
    waiting = stage.run("sleep", "1000", wait_s=0, exec_id="gone")
    assert waiting["state"] == "running"
    assert stage.run(script=f"touch /run/no-sshd; {kill}")["exit_code"] == 0
    with pytest.raises(errors.UnknownOutcome):
        stage.ask("exec_wait", exec_id="gone", timeout_s=LONG_S)
    assert stage.ask("machine_get", machine="box")["state"] == "running"
    again = stage.run(argv=["cat", "/proc/sys/kernel/random/boot_id"])
    assert again["stdout"] == boot_id


def test_a_daemon_that_is_killed_leaves_a_machine_to_the_next_and_loses_what_ran(
    state: Path,
) -> None:
    with stage_in(state) as stage:
        forward = stage.ask("forward_add", machine="box", guest="5000")
        serve = "while echo served | nc -l -p 5000; do :; done"
        server = f"(setsid sh -c '{serve}' </dev/null >/dev/null 2>&1 &)"
        assert stage.run(script=server)["exit_code"] == 0
        assert anyio.run(fetched, forward["host"]) == b"served\n"
        left = stage.run("sleep", "1000", wait_s=0, exec_id="left")
        assert left["state"] == "running"
        stage.daemon.kill()
    with stage_in(state) as stage:
        assert stage.ask("machine_get", machine="box")["state"] == "running"
        assert stage.run(argv=["echo", "adopted"])["stdout"] == "adopted\n"
        with pytest.raises(errors.UnknownOutcome, match="once its connection has ended"):
            stage.ask("exec_wait", exec_id="left", timeout_s=LONG_S)
        assert anyio.run(fetched, forward["host"]) == b"served\n"
        stage.ask("forward_remove", forward_id=forward["forward_id"])


async def fetched(address: str) -> bytes:
    """Hear what a server in the guest says; it may still be starting."""
    host, _, port = address.rpartition(":")
    with anyio.fail_after(LONG_S):
        while True:
            async with await anyio.connect_tcp(host, int(port)) as stream:
                with contextlib.suppress(anyio.BrokenResourceError):
                    if data := b"".join([piece async for piece in stream]):
                        return data
            await anyio.sleep(0.1)  # nobody tells when a server in a guest listens


def test_a_machine_that_is_stopped_is_powered_off_by_its_own_program_and_starts_anew(
    stage: Stage,
) -> None:
    done(stage, "machine_stop", machine="box")
    stopped = stage.ask("machine_get", machine="box")
    assert (stopped["state"], stopped["reason"]) == ("stopped", "it was stopped, as asked")
    done(stage, "machine_start", machine="box")
    assert stage.run(argv=["echo", "again"])["stdout"] == "again\n"
    stage.ask("machine_kill", machine="box")
