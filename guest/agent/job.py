"""A command that runs or has run. It outlives the connection it was started on.

Its output goes into `Output`; with a host it is read on when the last piece is sent, without one
until a window of it waits. How it ended comes from `waitpid`; what its pipes held at that moment is
still read, what others of its session say later is not.
"""

from __future__ import annotations

import os

import wire
from engine import GONE, READ, WRITE
from output import Output
from spawn import Terminal, signal_session, start
from stream import Refused, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from children import Children
    from engine import Engine, Timer
    from jobs import Attached

_SIGKILL = 9
_SIGTERM = 15
_FIONREAD = 0x541B
_MAX_TIMEOUT_MS = 30 * 24 * 3600 * 1000
_MAX_WORDS = 16384
# Between SIGTERM and SIGKILL.
_GRACE_S = 2.0
# How long a terminal whose command has ended may go on saying what is still in it.
_LINGER_S = 0.5
_READ_BYTES = 64 * 1024
_END_OF_TYPING = b"\x04"


class Job:
    """A command, from its start until the host has forgotten it."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.name = name
        self.pid = 0
        self.output = Output()
        self.starting = True
        self.status: int | None = None
        self.failure: Refused | None = None
        self.why = b""  # why we ended it: timeout or cancelled
        self.attached: Attached | None = None
        self.on_killed: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self._engine = engine
        self._error = -1
        self._sources: dict[int, int] = {}  # descriptor -> channel
        self._left: dict[int, int] = {}  # descriptor -> what it still has of the command's output
        self._terminal = False
        self._stdin = -1
        self._typed: list[tuple[Attached, bytes]] = []  # for its standard input
        self._typed_at = 0
        self._typed_all = False
        # What the host has sent of its input, for one that comes back to send the rest.
        self.input_bytes = 0
        self.input_over = False
        self._timers: list[Timer] = []

    def start(self, children: Children, fields: wire.Fields) -> None:
        """Start the command. Raises Broken, Refused or OSError when it cannot be."""
        terminal = size(fields) if wire.integer(fields, "tty", 0, 1, 0) else None
        takes_input = bool(wire.integer(fields, "stdin", 0, 1, 1))
        timeout_ms = wire.integer(fields, "timeout_ms", 0, _MAX_TIMEOUT_MS, 0)
        argv = wire.blobs(fields, "argv", _MAX_WORDS)
        if not argv or not argv[0]:
            raise wire.Broken("the field argv is empty")
        started = start(
            argv=argv,
            env=wire.blobs(fields, "env", _MAX_WORDS, []),
            cwd=wire.blob(fields, "cwd", 4096, b""),
            user=wire.blob(fields, "user", 256, b""),
            terminal=terminal,
            stdin=takes_input,
            group=children.group,
        )
        self.pid, self._stdin, self._terminal = started.pid, started.stdin, terminal is not None
        self._error, self._sources = started.error, started.outputs
        self.input_over = not takes_input and terminal is None
        self.starting = self._error >= 0
        if self.starting:
            self._engine.watch(self._error, READ, self._on_exec)
        children.watch(self.pid, started.handle, self._on_status)
        if timeout_ms:
            self._after(timeout_ms / 1000, lambda: self.stop(b"timeout"))
        self._listen()

    @property
    def over(self) -> bool:
        return self.status is not None and not self._sources

    # Its life.

    def stop(self, why: bytes) -> None:
        """End the command and its session, first politely."""
        if self.status is None and not self.why:
            self.why = why
            self.signal(_SIGTERM)
            self._after(_GRACE_S, lambda: self.signal(_SIGKILL))

    def signal(self, number: int) -> None:
        if self.status is None:
            signal_session(self.pid, number)

    def resize(self, terminal: Terminal) -> None:
        if self._terminal and self._stdin >= 0:
            terminal.apply(self._stdin)

    def attach(self, attached: Attached, offset: int) -> int:
        """Follow the job from an offset; return the offset that there still is."""
        offset = self.output.rewind(offset)
        self.attached = attached
        self._listen()
        return offset

    def detach(self) -> None:
        self.attached = None
        self._listen()

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers.append(self._engine.after(seconds, act))

    def _on_exec(self, _events: int) -> None:
        """Learn that the program runs, or why it does not."""
        self._engine.unwatch(self._error)
        said = os.read(self._error, 1024)
        os.close(self._error)
        self._error = -1
        self.starting = False
        if said:
            number, stage = said.split(b" ", 1)
            self.failure = refusal(OSError(int(number), ""), stage.decode(errors="replace"))
        self._go_on()

    def _on_status(self, status: int) -> None:
        """Learn how the command ended."""
        if self.starting:
            self._on_exec(READ)
        self.status = status
        for timer in self._timers:
            self._engine.cancel(timer)
        if self.why:  # all of the session is meant to be gone
            signal_session(self.pid, _SIGKILL)
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == _SIGKILL:
            self.on_killed()
        self._close_stdin()
        self._drain()

    # Its output.

    def sent(self) -> None:
        """Learn that the host took the last piece."""
        self.output.sent()
        if not self.output.waits:
            self._listen()

    def quiet(self) -> None:
        """Learn that nobody wants to hear more of it."""
        self.output.skip()
        self._listen()

    def _listen(self) -> None:
        """Read on if there is a place for more."""
        held = self.output.waits if self.attached else self.output.full
        for fd in self._sources:
            if held:
                self._engine.unwatch(fd)
            else:
                self._engine.watch(fd, READ, self._reading(fd))

    def _reading(self, fd: int) -> Callable[[int], None]:
        return lambda _: self._read(fd)

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, min(_READ_BYTES, self._left.get(fd, _READ_BYTES)))
        except BlockingIOError:
            return
        except OSError:  # a terminal that nobody has open any more
            data = b""
        if data:
            self.output.add(self._sources[fd], data)
            if fd in self._left:
                self._left[fd] -= len(data)
        if not data or self._left.get(fd) == 0:
            self._close_source(fd)
        self._listen()
        self._go_on()

    def _drain(self) -> None:
        for fd in list(self._sources):
            if self.why == b"cancelled":
                self._close_source(fd)
            elif self._terminal:
                self._engine.after(_LINGER_S, lambda fd=fd: self._stop_lingering(fd))
            else:
                self._left[fd] = _held_by_pipe(fd)
                if not self._left[fd]:
                    self._close_source(fd)
        self._listen()
        self._go_on()

    def _stop_lingering(self, fd: int) -> None:
        if self.output.waits or self.output.full:  # a slow reader; there may be more behind it
            self._engine.after(_LINGER_S, lambda: self._stop_lingering(fd))
        else:
            self._close_source(fd)

    def _close_source(self, fd: int) -> None:
        if self._sources.pop(fd, None) is not None:
            self._engine.unwatch(fd)
            os.close(fd)
            self._go_on()

    def _go_on(self) -> None:
        if self.attached:
            self.attached.link.enqueue(self.attached)
        elif self.over:
            self.on_end()

    # Its input.

    def type(self, sender: Attached, payload: bytes) -> None:
        if self._stdin < 0 or self._typed_all:
            sender.consumed(payload)  # nobody reads it, and the host must not wait for ever
        else:
            self._typed.append((sender, payload))
            self._feed(WRITE)

    def end_typing(self, sender: Attached) -> None:
        self.input_over = True
        if self._terminal:
            self.type(sender, _END_OF_TYPING)
            return
        self._typed_all = True
        if not self._typed:
            self._close_stdin()

    def _feed(self, events: int) -> None:
        """Write to the command as much as it takes."""
        while self._typed:
            sender, payload = self._typed[0]
            try:
                self._typed_at += os.write(self._stdin, memoryview(payload)[self._typed_at :])
            except BlockingIOError:
                self._engine.watch(self._stdin, WRITE, self._feed)
                return
            except OSError:
                self._close_stdin()
                return
            if self._typed_at == len(payload):
                self._typed_at = 0
                del self._typed[0]
                self._consumed(sender, payload)
        self._engine.unwatch(self._stdin)
        if self._typed_all or events & GONE:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin < 0:
            return
        self._engine.unwatch(self._stdin)
        os.close(self._stdin)
        self._stdin = -1
        typed, self._typed = self._typed, []
        for sender, payload in typed:
            self._consumed(sender, payload)

    def _consumed(self, sender: Attached, payload: bytes) -> None:
        if sender is self.attached:  # and not one of a connection that is gone
            sender.consumed(payload)


def size(fields: wire.Fields) -> Terminal:
    return Terminal(
        wire.integer(fields, "rows", 1, 10_000, 24), wire.integer(fields, "columns", 1, 10_000, 80)
    )


def _held_by_pipe(fd: int) -> int:
    import fcntl

    return int.from_bytes(fcntl.ioctl(fd, _FIONREAD, bytes(4)), "little")
