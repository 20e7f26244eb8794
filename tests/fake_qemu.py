"""A QEMU that is none: it takes the same command line and speaks the same protocols, in no time.

    fake_qemu.py -name guest=NAME ... (as machine/qemu/argv.py writes it)

Its guest is the real agent as a process of this host, so commands run here, and who they run on is
never changed. What the guest keeps is a folder, which is what is saved and loaded. The contract
suite of machines runs on this and on the real one; what passes there may be tested on this alone.
Words on the guest's kernel command line make its boot go wrong: `fake.silent`, `fake.panic`; one
with `fake.unsaved` cannot be saved, one with `fake.stays` does not go on after it was; with
`fake.hostile[=BOOT]` another agent is there, see `hostile_agent.py`.
"""

# pyright: basic
# The agent's modules are imported by their place in the guest, where no checker looks.

from __future__ import annotations

import array
import ctypes
import importlib
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

AGENT = Path(__file__).resolve().parents[1] / "guest" / "agent"
HOSTILE = Path(__file__).resolve().with_name("hostile_agent.py")
VERSION = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}
PANIC = b"\r\n[    1.0] Kernel panic - not syncing: sysrq triggered crash\r\n"
PDEATHSIG = 1
# For how long one that was sent is put away and refuses to go on, as the real one now and then.
PUTS_AWAY_S = 0.02
CAPBSET_DROP = 24
CAP_SYS_ADMIN = 21
LIBC = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """What the real one would not do either."""


class Words:
    """The command line, by option."""

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def find(self, option: str, having: str = "") -> str:
        pairs = zip(self._words, self._words[1:], strict=False)
        return next((value for name, value in pairs if name == option and having in value), "")

    def named(self, option: str, key: str) -> list[str]:
        """Give what a key is in each of these options that has it."""
        pairs = zip(self._words, self._words[1:], strict=False)
        found = [
            re.search(rf"(?:^|,){key}=([^,]+)", value) for name, value in pairs if name == option
        ]
        return [each[1] for each in found if each]

    def descriptor(self, chardev: str) -> int:
        found = re.search(r"\bfd=(\d+)", self.find("-chardev", f"id={chardev},"))
        assert found
        return int(found[1])

    def in_set(self, name: str) -> int:
        """The descriptor behind /dev/fdset/N."""
        found = re.search(r"fd=(\d+)", self.find("-add-fd", f",set={name.rpartition('/')[2]}"))
        assert found
        return int(found[1])


class Guest:
    """The agent, in a process that ends with us."""

    def __init__(self, kernel: str, ctl: int, console: int) -> None:
        self.console = console
        self.kernel = kernel
        self.ctl = ctl
        # Whoever started us has opened the console in the machine's folder.
        self.folder = Path(f"/proc/self/fd/{console}").resolve().parent / "guest"
        self.pid = 0
        self.handle = -1

    def boot(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.run()

    def run(self) -> None:
        us = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            try:
                LIBC.prctl(PDEATHSIG, signal.SIGKILL)
                if os.getppid() == us:
                    os._exit(self.serve())
            finally:
                os._exit(1)
        self.handle = os.pidfd_open(self.pid)

    def serve(self) -> int:
        os.setsid()
        # Its file systems are this host's, and nobody in a guest may freeze those.
        if os.geteuid() == 0 and LIBC.prctl(CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "the right to freeze file systems is not given up")
        os.dup2(self.console, 2)
        if "fake.panic" in self.kernel:
            os.write(self.console, PANIC)
            return 3
        if "fake.silent" in self.kernel:
            os.write(self.console, b"the guest has nothing to say\r\n")
            signal.pause()
        if hostile := re.search(r"fake\.hostile=?(\S*)", self.kernel):
            os.set_inheritable(self.ctl, True)
            words = [str(HOSTILE), f"fd:{self.ctl}", hostile[1]]
            os.execv(sys.executable, [sys.executable, "-I", "-S", *words])  # noqa: S606  # a machine is this program once more
        sys.path.insert(0, str(AGENT))
        modules = ("main", "ports", "spawn", "stream")
        main, ports, spawn, stream = map(importlib.import_module, modules)
        agent = main.Agent("fd:0", {})
        # Where commands get all that they have.
        environment = vars(spawn)["_environment"]

        def own(*words: Any, **more: Any) -> dict[bytes, bytes]:
            # Nobody is introduced to the host.
            hosts = os.fsencode(self.folder / "hosts")
            return {**environment(*words, **more), b"MICROVM_ORCHESTRATOR_HOSTS": hosts}

        vars(spawn)["_environment"] = own

        def fresh(link: Any, number: int, fields: dict[str, Any]) -> None:
            done = [name.encode() for name in fields if name != "verb"]
            stream.Stream(link, number).result({"done": done})

        agent.openers["fresh"] = fresh
        agent.port = ports.Listener(agent.engine, agent.link, socket.socket(fileno=self.ctl))
        return agent.run()

    def signal(self, number: int) -> None:
        if self.pid:
            os.kill(self.pid, number)

    def pack(self) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            if self.folder.exists():
                tar.add(self.folder, arcname=".")
        return len(out.getvalue()).to_bytes(8, "big") + out.getvalue()

    def unpack(self, state: bytes) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(state)) as tar:
            tar.extractall(self.folder, filter="data")


class Qemu:
    """The monitor, and what it commands."""

    def __init__(self, words: Words) -> None:
        log = re.search(r"logfile=([^,]+)", words.find("-chardev", "id=console,"))
        assert log
        self.name = words.find("-name").partition("=")[2]
        kernel, agent = words.find("-append"), words.descriptor("agent")
        self.guest = Guest(kernel, agent, words.in_set(log[1]))
        self.listener = socket.socket(fileno=words.descriptor("monitor"))
        self.waits = words.find("-incoming") == "defer"
        self.monitor: socket.socket | None = None
        # What its disks pass and are behind, though nobody reads or writes them.
        self.nodes = words.named("-blockdev", "node-name")
        drives = words.named("-device", "drive")
        names = [name for name in words.named("-device", "id") if name.startswith("disk")]
        self.disks: dict[str, dict[str, Any]] = {
            name: {"drive": drive, "bps": 0, "iops": 0}
            for name, drive in zip(names, drives, strict=True)
        }
        self.files: dict[str, int] = {}
        self.handed: list[int] = []
        self.runs = False
        self.sent_at = float("-inf")
        # What comes in: its length, then a tar of the guest's folder.
        self.source = -1
        self.state = b""
        self.buffer = b""

    def run(self) -> int:
        while True:
            watched: list[int | socket.socket] = [self.monitor or self.listener]
            watched += [fd for fd in (self.guest.handle, self.source) if fd >= 0]
            for ready in select.select(watched, [], [])[0]:
                if ready is self.listener:
                    self.monitor, _ = self.listener.accept()
                    self.say(VERSION)
                elif ready is self.monitor:
                    self.hear()
                elif ready == self.source:
                    self.load()
                else:
                    return self.over()

    def hear(self) -> None:
        assert self.monitor
        size = socket.CMSG_SPACE(array.array("i").itemsize)
        data, controls, _, _ = self.monitor.recvmsg(65536, size)
        for _, _, handed in controls:
            self.handed += array.array("i", handed[:4])
        if not data:
            self.monitor.close()
            self.monitor, self.buffer = None, b""
            return
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            asked = json.loads(line)
            command = asked["execute"].replace("-", "_")
            try:
                answer = getattr(self, "do_" + command)(**asked.get("arguments", {}))
            except Refused as why:
                error = {"class": "GenericError", "desc": str(why)}
                self.say({"error": error, "id": asked.get("id")})
            else:
                self.say({"return": answer if answer is not None else {}, "id": asked.get("id")})

    def say(self, message: Mapping[str, object]) -> None:
        if self.monitor:
            self.monitor.sendall(json.dumps(message).encode() + b"\r\n")

    def tell(self, event: str, **data: object) -> None:
        now = time.time_ns() // 1000
        at = {"seconds": now // 1_000_000, "microseconds": now % 1_000_000}
        self.say({"event": event, "data": data, "timestamp": at})

    def over(self) -> int:
        """The guest has ended: by itself, or it was killed."""
        _, status = os.waitpid(self.guest.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.tell("SHUTDOWN", guest=True, reason="guest-reset" if code else "guest-shutdown")
        return 0

    def do_qmp_capabilities(self) -> None:
        # By now we are in the control group that ends all of us, so what we start is in it too.
        if not self.waits and not self.guest.pid:
            self.guest.boot()
            self.runs = True

    def do_query_name(self) -> dict[str, str]:
        return {"name": self.name}

    def do_stop(self) -> None:
        if self.runs:
            self.runs = False
            self.guest.signal(signal.SIGSTOP)
            self.tell("STOP")

    def do_query_status(self) -> dict[str, str]:
        if self.is_put_away():
            return {"status": "finish-migrate"}
        return {"status": "running" if self.runs else "paused"}

    def is_put_away(self) -> bool:
        return time.monotonic() < self.sent_at + PUTS_AWAY_S

    def do_cont(self) -> None:
        if self.is_put_away():
            raise Refused("Migration is not finalized yet")
        if self.sent_at > 0 and "fake.stays" in self.guest.kernel:
            raise Refused("it stays")
        if not self.runs:
            self.runs = True
            if self.guest.pid:
                self.guest.signal(signal.SIGCONT)
            else:
                self.guest.run()
            self.tell("RESUME")

    def do_system_powerdown(self) -> None:
        self.tell("POWERDOWN")

    def do_getfd(self, fdname: str) -> None:
        self.files[fdname] = self.handed.pop(0)

    def do_migrate_set_capabilities(self, **_: object) -> None:
        pass

    def do_migrate_set_parameters(self, **_: object) -> None:
        pass

    def do_migrate(self, uri: str) -> None:
        if "fake.unsaved" in self.guest.kernel:
            os.close(self.files.pop(uri.partition(":")[2]))
            self.tell("MIGRATION", status="failed")
            return
        self.do_stop()
        state = self.state if self.waits and not self.guest.pid else self.guest.pack()
        with os.fdopen(self.files.pop(uri.partition(":")[2]), "wb") as out:
            out.write(state)
        self.tell("MIGRATION", status="completed")
        self.sent_at = time.monotonic()

    def do_migrate_cancel(self) -> None:
        pass

    def do_set_link(self, **_: object) -> None:
        pass

    def do_block_set_io_throttle(
        self, id: str, bps: int, iops: int, **_: object
    ) -> None:  # as QEMU calls it
        self.disks[id] |= {"bps": bps, "iops": iops}

    def do_query_block(self) -> list[dict[str, Any]]:
        kept = self.disks.items()
        return [
            {"qdev": name, "inserted": {k: disk[k] for k in ("bps", "iops")}} for name, disk in kept
        ]

    def do_query_named_block_nodes(self, **_: object) -> list[dict[str, str]]:
        return [{"node-name": name} for name in self.nodes]

    def do_blockdev_add(self, **node: Any) -> None:
        self.nodes.append(node["node-name"])

    def do_blockdev_del(self, **node: Any) -> None:
        self.nodes.remove(node["node-name"])

    def do_qom_get(self, path: str, **_: object) -> str:
        return str(self.disks[path.rpartition("/")[2]]["drive"])

    def do_qom_set(self, path: str, value: str, **_: object) -> None:
        self.disks[path.rpartition("/")[2]]["drive"] = value

    def do_migrate_incoming(self, uri: str) -> None:
        self.source = int(uri.partition(":")[2])

    def load(self) -> None:
        self.state += os.read(self.source, 1 << 20)
        if len(self.state) >= 8 + int.from_bytes(self.state[:8], "big"):
            self.source = -1
            self.guest.unpack(self.state[8:])
            self.tell("MIGRATION", status="completed")


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        sys.exit(print("QEMU emulator version 7.2.0 (that is none)"))
    sys.exit(Qemu(Words(sys.argv)).run())
