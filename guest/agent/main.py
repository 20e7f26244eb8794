"""The agent of a guest: started with where the host comes in, ends with the guest.

    python3 -I -S main.pyc port:ctl [power=sysrq] [hook=PROGRAM] [disk=/] [look=10] [group=FOLDER]

It must be there a moment after the kernel is, under emulation too. So what stands here at the top
is all that is loaded before it answers; a verb brings its own module when it is first asked for.
"""

from __future__ import annotations

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import wire
from children import Children
from engine import Engine
from jobs import Jobs
from link import Link
from ports import open_port
from stream import Refused, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from link import Opener

NAME = "microvm-agent 1"
_MODULES: dict[str, tuple[str, str]] = {
    "put": ("files", "open_put"),
    "get": ("files", "open_get"),
    "put_tree": ("trees", "open_put_tree"),
    "get_tree": ("trees", "open_get_tree"),
    "connect": ("sockets", "open_connect"),
    "listen": ("sockets", "open_listen"),
    "usage": ("usage", "open_usage"),
}


class Agent:
    """The parts of the agent, put together once."""

    def __init__(self, where: str, options: dict[str, str]) -> None:
        self.engine = Engine()
        self.options = options
        self.hook = options.get("hook", "").encode()
        self.children = Children(self.engine, options.get("group", ""))
        self.jobs = Jobs(self.engine, self.children)
        self.link = Link(self.engine, self.find_opener, self.hello)
        self.link.on_forget = self.jobs.forget
        # Unique within a boot. Not random: so early there may be no randomness to be had yet.
        self.identity = b"%d.%d" % (os.getpid(), time.monotonic_ns())
        self.exit_code: Callable[[], int] = lambda: 0
        self.openers: dict[str, Opener] = {
            **self.jobs.openers,
            "ping": _ping,
            "fresh": self.open_fresh,
            "shutdown": self.open_shutdown,
        }
        kind, _, address = where.partition(":")
        self.port = open_port(self.engine, self.link, kind, address)
        # Loads what it needs when the guest is up and has time.
        self.engine.after(1.0, self._begin_watch)

    def find_opener(self, verb: str) -> Opener:
        opener = self.openers.get(verb)
        if opener is None:
            if verb not in _MODULES:
                raise Refused("unsupported", f"there is no verb {verb!r}")
            module, function = _MODULES[verb]
            opener = self.openers[verb] = getattr(__import__(module), function)
        return opener

    def hello(self) -> wire.Fields:
        return {
            "agent": NAME.encode(),
            "identity": self.identity,
            "boot_id": _read("/proc/sys/kernel/random/boot_id"),
            "hostname": _read("/proc/sys/kernel/hostname")[:64],
            "verbs": [verb.encode() for verb in sorted({*self.openers, *_MODULES})],
        }

    def open_fresh(self, link: Link, number: int, fields: wire.Fields) -> Stream | None:
        from fresh import Fresh, change

        done = change(fields)
        if wire.integer(fields, "hook", 0, 1, 0):
            if self.hook:
                return Fresh(link, number, self.jobs, done, self.hook)
            done.append(b"hook")  # there is nothing to renew
        Stream(link, number).result({"done": done})
        return None

    def open_shutdown(self, link: Link, number: int, fields: wire.Fields) -> None:
        from power import Power

        power = Power(self.jobs, self.options.get("power", "exit"))
        self.exit_code = lambda: power.exit_code
        power.open_shutdown(link, number, fields)

    def run(self) -> int:
        self.port.start()
        while self.engine.running:
            try:
                self.engine.run()
            except Exception as error:  # noqa: BLE001 # PID 1 must not end: it takes the guest along
                print("agent:", repr(error), file=sys.stderr, flush=True)
                self.link.give_up(repr(error))
        return self.exit_code()

    def _begin_watch(self) -> None:
        from watch import Watch, stay_in_memory

        stay_in_memory()
        disk, look_s = self.options.get("disk", "/"), float(self.options.get("look", "10"))
        watch = Watch(self.engine, self.link, disk, look_s, self.children.group)
        self.jobs.on_killed = watch.look_at_memory


def _ping(link: Link, number: int, _: wire.Fields) -> None:
    Stream(link, number).result({})


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read().strip()


def main(words: list[str]) -> int:
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # started by a kernel without a console
            os.open("/dev/null", os.O_RDWR)
    options: dict[str, str] = {}
    for word in words[1:]:
        name, _, value = word.partition("=")
        options[name] = value
    return Agent(words[0], options).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
