"""A connection to a libvirtd, which is opened when it is needed, and again when it was lost.

Calls run in worker threads; the library is made for several at a time. What cannot be asked is an
error of its own: a libvirtd that is not there says nothing about a machine. A call that may have
been made is not made again, unless who calls says that it only asks. Above stand the machines and
their keeper; the connection lives as long as the block.
"""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine.libvirt.library import ErrorCode, load

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from microvm_orchestrator.machine.libvirt.library import Library, LibvirtError, Virt

T = TypeVar("T")

# libvirtd serves twenty of a client's calls at a time; other clients want some too.
_AT_A_TIME = 8
_HINT = "is libvirtd running, and may this user reach it? `doctor` tells"
_HINT_REFUSED = "the daemon's user needs the group libvirt (libvirtd), or a rule of polkit"
_AUTH = (ErrorCode.AUTH_FAILED, ErrorCode.AUTH_CANCELLED, ErrorCode.AUTH_UNAVAILABLE)


class Connection:
    """Where machines of libvirt's are asked for."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._virt: Virt | None = None
        self._opening = threading.Lock()
        self._closed = False
        self._limiter = anyio.CapacityLimiter(_AT_A_TIME)

    async def ask(self, question: Callable[[Virt], T]) -> T:
        """Make a call that changes nothing; once more, if libvirtd was restarted.

        Raises: Unavailable when there is no libvirtd; NotFound, StateForbids, MachineFailed.
        """
        return await self._in_thread(question, again=True)

    async def tell(self, deed: Callable[[Virt], T]) -> T:
        """Make a call that changes something.

        Raises: as `ask`; UnknownOutcome when libvirtd was lost meanwhile.
        """
        return await self._in_thread(deed, again=False)

    async def close(self) -> None:
        """Be connected no more; calls that are under way are waited for."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._forget, None)

    async def _in_thread(self, what: Callable[[Virt], T], *, again: bool) -> T:
        return await anyio.to_thread.run_sync(self._call, what, again, limiter=self._limiter)

    def _call(self, what: Callable[[Virt], T], again: bool) -> T:  # noqa: FBT001 # run_sync passes positions only
        library = load()
        virt = self._open(library) if again else self._greeted(library)
        try:
            return what(virt)
        except library.libvirtError as error:
            if virt.isAlive() == 1:
                raise _meaning(error) from error
            log.get(__name__).info("libvirt_lost", uri=self.uri, why=_said(error))
            self._forget(virt)
            if not again:
                raise errors.UnknownOutcome(
                    f"libvirt at {self.uri} was lost while it was told something: {_said(error)}",
                    hint="look how the machine stands before you try again",
                ) from error
        try:
            return what(self._open(library))
        except library.libvirtError as error:
            raise _meaning(error) from error

    def _greeted(self, library: Library) -> Virt:
        """Return a connection at whose other end somebody was just now."""
        virt = self._open(library)
        try:
            virt.getLibVersion()
        except library.libvirtError:
            # Only who writes finds that a libvirtd has gone.
            self._forget(virt)
            virt = self._open(library)
        return virt

    def _open(self, library: Library) -> Virt:
        with self._opening:
            if self._closed:
                raise errors.Stopping(f"the connection to libvirt at {self.uri} is closed")
            if self._virt is not None and self._virt.isAlive() != 1:
                self._drop()
            if self._virt is None:
                try:
                    self._virt = library.open(self.uri)
                except library.libvirtError as error:
                    raise self._not_there(error) from error
            return self._virt

    def _forget(self, virt: Virt | None) -> None:
        """Drop a connection, if it is still the one that is held."""
        with self._opening:
            if virt is None or self._virt is virt:
                self._drop()

    def _drop(self) -> None:
        held, self._virt = self._virt, None
        if held is not None:
            with suppress(load().libvirtError):
                held.close()

    def _not_there(self, error: LibvirtError) -> errors.OrchestratorError:
        refused = error.get_error_code() in _AUTH
        what = "does not let us in" if refused else "does not answer"
        hint = (
            "the user needs the group libvirt (libvirtd), or a rule of polkit" if refused else _HINT
        )
        return errors.Unavailable(f"libvirt at {self.uri} {what}: {_said(error)}", hint=hint)


@asynccontextmanager
async def open_connection(uri: str) -> AsyncGenerator[Connection]:
    """Be ready to ask a libvirtd, which need not be there yet."""
    connection = Connection(uri)
    try:
        yield connection
    finally:
        await connection.close()


def _meaning(error: LibvirtError) -> errors.OrchestratorError:
    """Say an error of libvirt's, which has answered, in our words."""
    said = f"libvirt says: {_said(error)}"
    match error.get_error_code():
        case ErrorCode.NO_DOMAIN | ErrorCode.NO_DOMAIN_SNAPSHOT:
            return errors.NotFound(said)
        case ErrorCode.DOM_EXIST:
            return errors.AlreadyExists(said)
        case ErrorCode.OPERATION_INVALID:
            return errors.StateForbids(said)
        case _:
            return errors.MachineFailed(said)


def _said(error: LibvirtError) -> str:
    return error.get_error_message() or str(error)
