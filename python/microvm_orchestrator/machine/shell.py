"""How we talk to what runs inside a machine: commands, files, sockets, and who the guest is.

`Shell` is one connection to one guest, whatever carries it: `channel/` speaks to our own agent, SSH
to foreign images. It ends with the block that opened it; commands in the guest do not. Everything
that comes from a guest is hostile: sizes are capped, and files land beneath one folder of the host.

What a way in lacks raises NotOffered, and `Guest.verbs` does not name it.

When the connection breaks, what may have started raises UnknownOutcome and is never sent again:
after a reconnect `attach` finds a command by its id, and NotFound means that it never started.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from anyio.abc import ByteStream

# What is kept of each of stdout and stderr where the caller does not say.
OUTPUT_CAP = 1 << 20
# What may be fetched where the caller does not say.
MAX_TREE_SIZE = 1 << 30
MAX_TREE_ENTRIES = 100_000
# Between asking the programs of a guest to end and ending them.
SHUTDOWN_GRACE_S = 5.0


class Channel(StrEnum):
    """Where a command said something. A terminal has one channel: stdout."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Terminal:
    """The size of a terminal."""

    rows: int = 24
    columns: int = 80


@dataclass(frozen=True, slots=True)
class Command:
    """A program and its words, as they are: no shell reads them."""

    argv: Sequence[str | bytes]
    # Beside PATH, HOME, USER, LOGNAME and LANG of the user.
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    # The user's home where nothing is said.
    cwd: str | None = None
    # A name, a number, or uid:gid; whoever the agent runs as where nothing is said.
    user: str | None = None
    terminal: Terminal | None = None
    # The guest ends the command and all of its session then, by the guest's own clock.
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended, from `waitpid` in the guest."""

    # None when a signal ended it.
    code: int | None
    signal: int | None = None
    # Its timeout passed, so the guest ended it.
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of what a command said."""

    channel: Channel
    data: bytes
    # Of its first byte, counted over both channels in the order of the pieces.
    offset: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended, with what it said."""

    exec_id: str
    exit: Exit
    stdout: bytes
    stderr: bytes
    # It said more than was to be kept.
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A command that the guest has not been told to forget."""

    exec_id: str
    running: bool
    # Behind the last byte that it has said.
    offset: int


@dataclass(frozen=True, slots=True)
class Tcp:
    """A port in the guest; 0 lets the guest choose one to listen on."""

    port: int
    host: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Unix:
    """A socket in the guest's file system."""

    path: str


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of the guest. What is None stays as it is."""

    name: str
    mac: str | None = None
    address: str | None = None  # with its prefix: 10.0.0.2/24
    gateway: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a guest is from now on. Fresh entropy and the host's clock always come with it."""

    hostname: str | None = None
    machine_id: str | None = None
    interfaces: Sequence[Interface] = ()
    # Run what the image has set up to renew the SSH host keys and the like.
    hook: bool = False


@dataclass(frozen=True, slots=True)
class Guest:
    """Who answered."""

    agent: str
    # Of the boot and of the agent: where either is another one, all jobs of before are gone.
    boot_id: str
    identity: str
    hostname: str
    verbs: frozenset[str]

    @property
    def who(self) -> tuple[str, str]:
        return self.boot_id, self.identity


@dataclass(frozen=True, slots=True)
class GuestUsage:
    """What a guest says it uses. Its word only: the host's own figures are those to bill by."""

    uptime_s: float
    cpu_busy_s: float
    cpu_idle_s: float
    cpus: int
    memory_total_kib: int
    memory_available_kib: int
    disk_total_kib: int
    disk_available_kib: int
    pids: int
    oom_kills: int


@dataclass(frozen=True, slots=True)
class GuestEvent:
    """Something that a guest reports: `oom`, `disk_full`, `pids_full`, `shutting_down`, `log`."""

    kind: str
    text: str = ""
    figures: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """How much a tree from a guest may be."""

    size: int = MAX_TREE_SIZE
    entries: int = MAX_TREE_ENTRIES


@dataclass(frozen=True, slots=True)
class Fetched:
    """A tree that has arrived."""

    files: int
    folders: int
    size: int
    # What is neither file nor folder does not travel: how many, and the first names.
    skipped: int = 0
    skips: tuple[str, ...] = ()


class File(Protocol):
    """A file on its way out of a guest."""

    @property
    def size(self) -> int: ...

    @property
    def mode(self) -> int: ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give exactly `size` bytes, or raise."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """What the guest has of a command's input."""

    size: int
    over: bool


class Process(Protocol):
    """A command that was started, and a connection to it."""

    @property
    def exec_id(self) -> str: ...

    @property
    def offset(self) -> int:
        """Where the output begins; more than was asked for when the guest kept less."""
        ...

    @property
    def given(self) -> Given | None:
        """What of its input was there when this connection to it began; None if none can tell."""
        ...

    def __aiter__(self) -> AsyncIterator[Output]:
        """Give its output; a piece counts as dealt with when the next one is asked for.

        Raises: UnknownOutcome when the connection breaks, after all that had arrived.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Write to its standard input, as fast as it reads. Nothing happens once it has ended."""
        ...

    async def end_input(self) -> None: ...

    async def signal(self, number: int) -> None:
        """Signal its whole session."""
        ...

    async def resize(self, terminal: Terminal) -> None: ...

    async def wait(self) -> Exit:
        """Wait for its end; output that nobody has read is dropped.

        Raises: UnknownOutcome.
        """
        ...


class Shell(Protocol):
    """One connection to one guest."""

    @property
    def guest(self) -> Guest: ...

    async def exec(
        self,
        command: Command,
        *,
        stdin: bytes = b"",
        exec_id: str | None = None,
        output_cap: int = OUTPUT_CAP,
    ) -> Finished:
        """Run a command to its end and keep the first `output_cap` bytes of each channel.

        A cancelled call ends the command. Raises: NotFound, GuestRefused, AlreadyExists for an id
        that was used, UnknownOutcome.
        """
        ...

    def stream(
        self,
        command: Command,
        *,
        exec_id: str | None = None,
        stdin: bool = True,
        keep: bool = False,
    ) -> AbstractAsyncContextManager[Process]:
        """Start a command and follow it. Leaving the block early ends it.

        With `keep` it goes on instead, and the guest keeps how it ended until `forget`.
        """
        ...

    def attach(
        self, exec_id: str, *, offset: int = 0, keep: bool = True
    ) -> AbstractAsyncContextManager[Process]:
        """Follow a command that was started before, on this connection or an earlier one.

        Raises: NotFound when the guest never started it, or has been told to forget it.
        """
        ...

    async def jobs(self) -> list[Job]: ...

    async def forget(self, exec_id: str) -> None:
        """Let the guest let go of a command that has ended."""
        ...

    async def put(
        self,
        path: str,
        content: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        mode: int = 0o644,
        user: str | None = None,
        parents: bool = False,
    ) -> None:
        """Write a file, whole or not at all. `size` goes with content that comes in pieces."""
        ...

    def get(self, path: str, *, max_size: int) -> AbstractAsyncContextManager[File]:
        """Read a regular file. Raises: TooLarge before a byte of it has travelled."""
        ...

    async def put_tree(self, source: Path, path: str, *, user: str | None = None) -> None:
        """Copy what a folder of the host holds into one of the guest; links are left out."""
        ...

    async def get_tree(self, path: str, into: Path, limits: TreeLimits | None = None) -> Fetched:
        """Copy what a folder of the guest holds into a folder of the host.

        Raises: TooLarge; ProtocolBroken for a name that would reach outside. What has arrived
            until then stays for the caller to remove.
        """
        ...

    def forward(self, address: Tcp | Unix) -> AbstractAsyncContextManager[ByteStream]:
        """Connect to a socket in the guest."""
        ...

    def reverse(
        self, address: Tcp | Unix, serve: Callable[[ByteStream], Awaitable[None]]
    ) -> AbstractAsyncContextManager[int]:
        """Listen in the guest and serve on the host whoever connects, each in a task of the block.

        Gives the port that is listened on, 0 for a unix socket.
        """
        ...

    async def fresh(self, identity: Identity) -> None:
        """Give a clone entropy, clock and names of its own.

        Raises: GuestRefused unless the guest has acknowledged every part of it.
        """
        ...

    async def ping(self) -> float:
        """Return how many seconds the guest took to answer."""
        ...

    async def usage(self) -> GuestUsage: ...

    def events(self) -> AsyncIterator[GuestEvent]:
        """Give what the guest reports, until the connection ends. Old ones make room for new."""
        ...

    async def shutdown(self, *, reboot: bool = False, grace_s: float = SHUTDOWN_GRACE_S) -> None:
        """Ask the guest to go down; returns when it has said that it will."""
        ...
