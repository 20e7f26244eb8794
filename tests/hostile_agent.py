"""An agent that lies: it greets like ours, and does to the host what a guest may do that fell.

    hostile_agent.py fd:N|port:NAME [BOOT]

It runs in a real guest in the place of the agent, and behind the QEMU that only looks so. `BOOT`
names what it does instead of greeting; else it greets, takes any identity, and each command, file
or folder that is asked for is the name of what it answers with. After that it greets again. Only
the standard library and `wire`, which lies beside it in a guest.
"""

# It runs in a guest, where neither a checker looks nor typing is loaded, and as one file.
# pyright: basic, reportMissingImports=false
# ruff: noqa: ANN001, ANN002, ANN201, ANN202, ANN204, ARG001, ARG005, PTH100, PTH118, PTH120
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../guest/agent"))

import wire
from wire import CANCEL, CREDIT, DATA, END, ERROR, EVENT, HELLO, NOTE, OPEN, RESULT

MIB = 1 << 20
GREETING = {
    "agent": b"hostile",
    "identity": b"1",
    "boot_id": b"2",
    "hostname": b"guest",
    "verbs": [b"exec", b"get", b"get_tree", b"fresh"],
}
STARTED = {"pid": 1, "offset": 0}
ENDED = {"code": 0, "signal": 0, "why": b"", "offset": 0}


class Gone(Exception):
    """The host has hung up."""


class Host:
    """Whoever connects, on a socket or on a port."""

    def __init__(self, fd, device, heard=b""):
        self.fd = fd
        self.device = device
        self.reader = wire.FrameReader()
        self.reader.buffer += heard
        self.frames = []

    def write(self, data):
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.fd, view) :]
            except OSError as error:
                raise Gone from error

    def read(self):
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError as error:
            raise Gone from error
        if not data:
            if not self.device:
                raise Gone
            time.sleep(0.01)  # a port without a host answers at once
        return data

    def preamble(self):
        """Wait for a host's beginning; return what answers it."""
        buffer = self.reader.buffer
        while (at := buffer.find(wire.MARKER)) < 0 or len(buffer) - at < wire.PREAMBLE_BYTES:
            buffer += self.read()
        nonce, _, newest = wire.read_preamble(buffer[at : at + wire.PREAMBLE_BYTES])
        del buffer[: at + wire.PREAMBLE_BYTES]
        return nonce, newest

    def say(self, kind, number, what=b"", channel=0):
        payload = what if isinstance(what, bytes) else wire.encode(what)
        self.write(wire.frame(kind, number, payload, channel))

    def hear(self):
        """Wait for a frame; a host that begins anew is gone."""
        while not self.frames:
            if wire.MARKER in self.reader.buffer:
                raise Gone
            self.frames += self.reader.frames()
            if not self.frames:
                self.reader.buffer += self.read()
        return self.frames.pop(0)


# Instead of a greeting.


def answers_nothing(host, nonce):
    pass


def answers_one_byte_a_second(host, nonce):
    for byte in wire.preamble(nonce, 1, 1):
        host.write(bytes([byte]))
        time.sleep(1)


def speaks_another_version(host, nonce):
    host.write(wire.preamble(nonce, 9, 9))


def sends_garbage_without_end(host, nonce):
    while True:
        host.write(b"\xf5" * 65536)


def answers_somebody_else(host, nonce):
    while True:
        host.write(wire.preamble(bytes(16), 1, 1) * 500)


def says_who_it_is_twice(host, nonce):
    host.write(wire.preamble(nonce, 1, 1))
    host.say(HELLO, 0, GREETING)
    host.say(HELLO, 0, GREETING)


def does_not_say_who_it_is(host, nonce):
    host.write(wire.preamble(nonce, 1, 1))
    host.say(HELLO, 0, {"agent": b"x" * 4000})


def speaks_before_its_greeting(host, nonce):
    host.write(wire.preamble(nonce, 1, 1))
    host.say(RESULT, 1, {"done": [b"hostname"]})


def is_ready_by_its_console_only(host, nonce):
    os.write(2, b"agent: ready\r\n\x1b]0;ready\x07 microvm-agent 1 HELLO\r\n")
    answers_nothing(host, nonce)


def _acknowledges(*done):
    def fresh(host, nonce):
        host.write(wire.preamble(nonce, 1, 1))
        host.say(HELLO, 0, GREETING)
        while True:
            kind, number, _, _ = host.hear()
            if kind == OPEN:
                host.say(RESULT, number, {"done": list(done)})

    return fresh


acknowledges_all_but_its_name = _acknowledges(b"entropy", b"realtime_ns", b"machine_id", b"hook")
acknowledges_what_nobody_asked = _acknowledges(b"root", b"admin", *[b"x"] * 14)

BOOTS = (
    *(answers_nothing, answers_one_byte_a_second, speaks_another_version),
    *(sends_garbage_without_end, answers_somebody_else, says_who_it_is_twice),
    *(does_not_say_who_it_is, speaks_before_its_greeting, is_ready_by_its_console_only),
)


# Frames, as an answer to anything.


def _raw(data):
    def act(host, number):
        host.write(data)

    return act


def _said(*frames):
    """Say frames; a stream of 0 is the one that was opened."""

    def act(host, number):
        for kind, stream, what, channel in frames:
            unbound = kind in (HELLO, EVENT)
            host.say(kind, stream or (0 if unbound else number), what, channel)

    return act


def _entry(path, kind=b"file", size=0):
    return NOTE, 0, {"type": kind, "path": path, "mode": 0o6777, "size": size}, 0


def _exec(*frames):
    return _said((NOTE, 0, STARTED, 0), *frames)


def opens_streams_and_reads_no_answer(host, number):
    opened = wire.encode({"listener": 1})
    for last in range(2, 400_000, 400):
        numbers = range(last, last + 400, 2)
        host.write(b"".join(wire.frame(OPEN, one, opened) for one in numbers))


def floods_its_output(host, number, most=64 * MIB):
    """As much as it is granted, and a right end."""
    host.say(NOTE, number, STARTED)
    room, sent, piece = wire.WINDOW, 0, b"\x1b[2J\xff\x00" * 9000
    while sent < most:
        while room < wire.cost(piece):
            kind, stream, _, payload = host.hear()
            if stream == number and kind == CANCEL:
                host.say(RESULT, number, {**ENDED, "offset": sent})
                return
            room += wire.read_credit(payload) if kind == CREDIT and stream == number else 0
        host.say(DATA, number, piece, wire.STDOUT)
        room -= wire.cost(piece)
        sent += len(piece)
    host.say(RESULT, number, {**ENDED, "offset": sent})


def floods_with_reports(host, number):
    host.say(NOTE, number, STARTED)
    report = {"event": b"oom", "text": b"\x1b[2J" * 800, "kills": 2**62}
    report.update({f"figure_{n}": n for n in range(30)})
    for _ in range(3000):
        host.say(EVENT, 0, report)
    host.say(RESULT, number, ENDED)


def floods_its_console(host, number):
    with contextlib.suppress(OSError):  # there may be a limit
        for _ in range(400):
            os.write(2, b"\x1b[2J\x1b]0;x\x07\x9b2J\r" + b"flood " * 10_000 + b"\r\n")
    _exec((RESULT, 0, ENDED, 0))(host, number)


def never_ends_its_output(host, number):
    host.say(NOTE, number, STARTED)
    host.say(END, number)


def _byte_by_byte(host, number):
    for byte in wire.frame(NOTE, number, wire.encode(STARTED)):
        host.write(bytes([byte]))
        time.sleep(0.02)
    host.say(RESULT, number, ENDED)


ACTS = {
    "true": _exec((RESULT, 0, ENDED, 0)),
    "byte-by-byte": _byte_by_byte,
    "silent": lambda host, number: None,
    "longer-than-it-says": _raw(wire.frame(DATA, 1, b"abc", 1)[:-1] + b"more\n"),
    "shorter-than-it-says": _raw(wire.frame(DATA, 1, b"abc", 1)[:-3] + bytes(64)),
    "four-gigabytes-long": _raw(b"\0\0\0\1\xff\xff\xff\xff\0\3x"),
    "of-no-length": _raw(b"\0\0\0\1\0\0\0\0\0\3\n"),
    "of-an-unknown-kind": _raw(b"\0\0\0\1\0\0\0\1\0\x7fx\n"),
    "on-a-stream-nobody-opened": _said((DATA, 77, b"x", 1)),
    "on-the-connection": _raw(b"\0\0\0\0\0\0\0\1\0\3x\n"),
    "grants-everything": _said((CREDIT, 0, b"\xff" * 4, 0)),
    "grants-nothing": _said((CREDIT, 0, bytes(4), 0)),
    "greets-again": _said((HELLO, 0, GREETING, 0)),
    "ends-twice": _said(
        (NOTE, 0, STARTED, 0), (RESULT, 0, {**ENDED, "code": 7}, 0), (RESULT, 0, ENDED, 0)
    ),
    "a-status-of-256": _exec((RESULT, 0, {**ENDED, "code": 256}, 0)),
    "a-status-below-zero": _exec((RESULT, 0, {**ENDED, "code": -1}, 0)),
    "a-status-that-is-a-text": _exec((RESULT, 0, {**ENDED, "code": b"0"}, 0)),
    "a-signal-of-65": _exec((RESULT, 0, {**ENDED, "signal": 65}, 0)),
    "more-output-than-there-was": _exec((RESULT, 0, {**ENDED, "offset": 2**62}, 0)),
    "a-record-in-a-record": _said((NOTE, 0, b"\1\1a\3\0\0\0\1" * 9, 0)),
    "a-list-of-four-billion": _said((NOTE, 0, b"\1\6offset\3\xff\xff\xff\xff" + bytes(99), 0)),
    "a-field-of-four-gigabytes": _said((NOTE, 0, b"\1\6offset\2\xff\xff\xff\xffx", 0)),
    "data-behind-its-end": _exec((END, 0, b"", 0), (DATA, 0, b"x", 1)),
    "an-answer-to-a-command-of-ours": _said((CANCEL, 0, b"", 0)),
    "an-error-of-escapes": _said((ERROR, 0, {"code": b"denied", "text": b"\x1b[2J\r\n\xff"}, 0)),
    "another-agent": _raw(wire.preamble(bytes(16), 0, 1)),
    "opens-streams-without-end": opens_streams_and_reads_no_answer,
    "floods-its-output": floods_its_output,
    "floods-with-reports": floods_with_reports,
    "floods-its-console": floods_its_console,
    "never-ends-its-output": never_ends_its_output,
    # Files.
    "larger-than-allowed": _said((NOTE, 0, {"size": 1 << 32, "mode": 0o644}, 0)),
    "smaller-than-nothing": _said((NOTE, 0, {"size": -1, "mode": 0o644}, 0)),
    "more-than-its-size": _said((NOTE, 0, {"size": 2, "mode": 0}, 0), (DATA, 0, b"abc", 0)),
    "less-than-its-size": _said(
        (NOTE, 0, {"size": 4, "mode": 0}, 0), (DATA, 0, b"abc", 0), (RESULT, 0, {}, 0)
    ),
    "a-mode-of-a-device": _said((NOTE, 0, {"size": 0, "mode": 0o60644}, 0)),
    # Folders.
    "a-way-up": _said(_entry(b"../evil")),
    "a-way-up-from-inside": _said(_entry(b"d", b"folder"), _entry(b"d/../../evil")),
    "an-absolute-name": _said(_entry(b"/evil")),
    "the-folder-itself": _said(_entry(b".")),
    "no-name": _said(_entry(b"")),
    "a-nul-in-a-name": _said(_entry(b"ok\0/../evil")),
    "a-name-of-256-bytes": _said(_entry(b"x" * 256)),
    "a-folder-100-deep": _said(_entry(b"/".join([b"d"] * 100))),
    "a-symlink": _said(_entry(b"l", b"symlink")),
    "a-device": _said(_entry(b"l", b"device")),
    "a-fifo": _said(_entry(b"l", b"fifo")),
    "a-file-through-a-link-of-the-host": _said(_entry(b"link/evil")),
    "a-file-over-a-link-of-the-host": _said(_entry(b"link")),
    "a-file-in-a-file": _said(_entry(b"f"), _entry(b"f/g")),
    "a-name-twice": _said(_entry(b"f"), _entry(b"f")),
    "a-sparse-file-of-4-gb": _said(_entry(b"f", size=1 << 32)),
    "millions-of-entries": _said(*[_entry(b"%d" % n) for n in range(2000)]),
    "strange-names": _said(
        *[_entry(n) for n in (b"a\nb", b"\xff\xfe", b"x" * 250, b"A", b"a", b"\x1b[2J", b"-rf")],
        *[_entry(n) for n in ("\u00e9".encode(), "e\u0301".encode(), b"~", b"$(id)", b"a b")],
        (RESULT, 0, {"skipped": 0, "skips": []}, 0),
    ),
}


def greet(host, nonce):
    host.write(wire.preamble(nonce, 1, 1))
    host.say(HELLO, 0, GREETING)


def serve(host, boot):
    nonce, _ = host.preamble()
    if boot:
        boot(host, nonce)
    else:
        greet(host, nonce)
    while True:
        kind, number, _, payload = host.hear()
        if kind == OPEN:
            answer(host, number, wire.decode(payload))


def answer(host, number, asked):
    verb = asked["verb"]
    if verb == b"fresh":
        names = [name.encode() for name in asked if name != "verb"]
        host.say(RESULT, number, {"done": names})
    elif verb in (b"exec", b"get", b"get_tree"):
        named = asked["argv"][0] if verb == b"exec" else asked["path"]
        ACTS[named.rpartition(b"/")[2].decode()](host, number)
    elif verb == b"attach":
        host.say(ERROR, number, {"code": b"not-found", "text": b"no such job"})
    else:
        host.say(RESULT, number, {})


def find_port(name):
    folder = "/sys/class/virtio-ports"
    while True:
        for port in os.listdir(folder):
            with open(f"{folder}/{port}/name") as file:
                if file.read().strip() == name:
                    return os.open(f"/dev/{port}", os.O_RDWR)
        time.sleep(0.01)


def main(where, boot=""):
    begin = {act.__name__: act for act in BOOTS}
    begin["acknowledges_all_but_its_name"] = acknowledges_all_but_its_name
    begin["acknowledges_what_nobody_asked"] = acknowledges_what_nobody_asked
    kind, _, name = where.partition(":")
    device = find_port(name) if kind == "port" else -1
    listener = None if device >= 0 else socket.socket(fileno=int(name))
    heard = b""
    while True:
        fd = listener.accept()[0].detach() if listener else device
        host = Host(fd, listener is None, heard)
        try:
            serve(host, begin.get(boot))
        except (Gone, wire.Broken):
            pass
        finally:
            if fd != device:
                os.close(fd)
            else:  # the next host begins behind what the last one said
                heard = bytes(host.reader.buffer)


if __name__ == "__main__":
    main(*sys.argv[1:])
