"""The one place that loads libvirt's library, and what we use of it, by its own names.

The library ships no types and is not everywhere: it is built against the libvirt of the machine.
Above stands the connection; nothing else of this program knows that there is such a library.
"""

from __future__ import annotations

import importlib
from enum import IntEnum, IntFlag
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class DomainState(IntEnum):
    """Where libvirt takes a machine to stand."""

    NOSTATE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4
    SHUTOFF = 5
    CRASHED = 6
    PMSUSPENDED = 7


class PauseReason(IntEnum):
    """Why one stands still, as far as it is a fault."""

    UNKNOWN = 0
    USER = 1
    MIGRATION = 2
    SAVE = 3
    DUMP = 4
    IOERROR = 5
    WATCHDOG = 6
    FROM_SNAPSHOT = 7
    SHUTTING_DOWN = 8
    SNAPSHOT = 9
    CRASHED = 10
    STARTING_UP = 11
    POSTCOPY = 12
    POSTCOPY_FAILED = 13


class OffReason(IntEnum):
    """Why one does not run."""

    UNKNOWN = 0
    SHUTDOWN = 1
    DESTROYED = 2
    CRASHED = 3
    MIGRATED = 4
    SAVED = 5
    FAILED = 6
    FROM_SNAPSHOT = 7
    DAEMON = 8


class ErrorCode(IntEnum):
    """The errors that mean something to us."""

    INVALID_CONN = 6
    OPERATION_FAILED = 9
    DOM_EXIST = 28
    NO_DOMAIN = 42
    AUTH_FAILED = 45
    OPERATION_INVALID = 55
    CONFIG_UNSUPPORTED = 67
    NO_DOMAIN_SNAPSHOT = 72
    AUTH_CANCELLED = 79
    AUTH_UNAVAILABLE = 94


class Undefine(IntFlag):
    """What goes with the definition of a machine."""

    MANAGED_SAVE = 1
    SNAPSHOTS_METADATA = 2
    NVRAM = 4
    CHECKPOINTS_METADATA = 16


class SnapshotCreate(IntFlag):
    """How a machine is saved."""

    NO_METADATA = 4
    DISK_ONLY = 16
    REUSE_EXT = 32
    ATOMIC = 128


SAVE_PAUSED = 4
AFFECT_LIVE = 1
XML_INACTIVE = 2
SHUTDOWN_ACPI = 1


class Domain(Protocol):
    """A machine, as libvirt knows it."""

    def UUIDString(self) -> str: ...

    def name(self) -> str: ...

    def create(self) -> int: ...

    def destroy(self) -> int: ...

    def isActive(self) -> int: ...

    def state(self) -> Sequence[int]: ...

    def suspend(self) -> int: ...

    def resume(self) -> int: ...

    def shutdownFlags(self, flags: int = 0) -> int: ...

    def undefineFlags(self, flags: int = 0) -> int: ...

    def XMLDesc(self, flags: int = 0) -> str: ...

    def setBlockIoTune(self, disk: str, params: Mapping[str, int], flags: int = 0) -> int: ...

    def blockIoTune(self, disk: str, flags: int = 0) -> Mapping[str, object]: ...

    def snapshotCreateXML(self, xmlDesc: str, flags: int = 0) -> object: ...


class Virt(Protocol):
    """An open connection."""

    def close(self) -> int: ...

    def isAlive(self) -> int: ...

    def getLibVersion(self) -> int: ...

    def getCapabilities(self) -> str: ...

    def defineXML(self, xml: str) -> Domain: ...

    def lookupByUUIDString(self, uuidstr: str) -> Domain: ...

    def restoreFlags(self, frm: str, dxml: str | None = None, flags: int = 0) -> int: ...


class LibvirtError(Exception):
    """What every error of the library is, by its methods. None of them is of this class."""

    def get_error_code(self) -> int | None: ...

    def get_error_message(self) -> str | None: ...


class Library(Protocol):
    libvirtError: type[LibvirtError]

    def open(self, name: str) -> Virt: ...

    def registerErrorHandler(self, f: Callable[[object, object], None], ctx: object) -> None: ...


class QemuLibrary(Protocol):
    """What libvirt can do with a machine of QEMU's alone."""

    def qemuMonitorCommand(self, domain: Domain, cmd: str, flags: int) -> str: ...


@cache
def load() -> Library:
    """Raises: Unavailable when there is no such library."""
    try:
        library = cast("Library", importlib.import_module("libvirt"))
    except ImportError as error:
        raise errors.Unavailable(
            f"libvirt's library for Python cannot be loaded: {error}",
            hint='pip install "microvm-orchestrator[libvirt]"; it is built with a compiler, '
            "pkg-config and the headers of libvirt",
        ) from error
    # Otherwise it writes every error to stderr as well.
    library.registerErrorHandler(_unheard, None)
    return library


@cache
def load_qemu() -> QemuLibrary:
    """Raises: Unavailable when there is no such library."""
    load()
    return cast("QemuLibrary", importlib.import_module("libvirt_qemu"))


def _unheard(_context: object, _error: object) -> None:
    """Say nothing: errors are raised."""
