"""One run's way out: a socket of its own, so who connects is known to be that run.

`async with open_egress(...)` listens until the block ends, when every request of the guest ends
with it. A connection may also be handed to `serve`, as `Shell.reverse` does. Above stands whoever
runs tasks; below, model APIs, the proxy and the reports of guests.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketStream

from microvm_orchestrator import errors, log
from microvm_orchestrator.egress.addresses import Resolver, look_up
from microvm_orchestrator.egress.budget import Account, Budget, Exhausted, Shared, Spent
from microvm_orchestrator.egress.credentials import Credentials
from microvm_orchestrator.egress.exchange import Draft, OnExchange
from microvm_orchestrator.egress.http import Connection, Head, Patience, Refusal
from microvm_orchestrator.egress.models import Models, OnExhausted
from microvm_orchestrator.egress.policy import Policy
from microvm_orchestrator.egress.prices import Prices
from microvm_orchestrator.egress.proxy import Proxy
from microvm_orchestrator.egress.reports import PATH as REPORT_PATH
from microvm_orchestrator.egress.reports import OnReport, Reports
from microvm_orchestrator.egress.secrets import PATH as SECRETS_PATH
from microvm_orchestrator.egress.secrets import Secrets, refuse_unusable
from microvm_orchestrator.egress.upstream import Upstream, open_upstream
from microvm_orchestrator.splice import GONE
from microvm_orchestrator.together import beside

SOCKET = "egress"
# A guest's channel carries 128 streams, for commands and files too.
CONNECTIONS_MOST = 48
# How many exchanges of a run are told one by one; of the others there is a number.
TOLD_MOST = 5000
# An owner that does not take what it is told is not waited for for ever.
_TELL_S = 30.0
_CLOSE_S = 2.0
# What keeps us from accepting, such as too many open files, takes a moment to pass.
_ACCEPT_PAUSE_S = 0.1
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_log = log.get(__name__)

OnSpent = Callable[[Spent], Awaitable[None]]


async def _untold(told: object) -> None:
    del told


@dataclass(slots=True)
class Egress:
    """The open endpoint of one run."""

    # Where it listens, when it was given a folder.
    path: Path | None
    _account: Account
    _models: Models
    _proxy: Proxy
    _secrets: Secrets
    _reports: Reports
    _on_exchange: OnExchange
    _on_spent: OnSpent
    _patience: Patience
    # Exchanges that were not told one by one.
    unlisted: int = 0
    _told: int = 0
    # What the owner was last told is spent; one is told at a time.
    _noted: Spent | None = None
    _noting: anyio.Lock = field(default_factory=anyio.Lock)
    # The connections there are, and what is set when each is over.
    _serving: dict[anyio.CancelScope, anyio.Event] = field(
        default_factory=dict[anyio.CancelScope, anyio.Event]
    )

    @property
    def spent(self) -> Spent:
        return self._account.spent

    @property
    def budget(self) -> Budget:
        return self._account.budget

    @property
    def exhausted(self) -> Exhausted | None:
        """The limit that is reached, if one is."""
        return self._account.exhausted()

    def set_budget(self, budget: Budget) -> None:
        """From now on this is the limit; with a higher one requests pass again."""
        self._account.budget = budget
        self._models.raised()

    async def shut(self) -> None:
        """Let no request to a model out until `set_budget`, and wait for those that are."""
        self._models.shut()
        await self._models.quiet()

    async def serve(self, stream: ByteStream) -> None:
        """Serve one connection of the guest until either side ends it."""
        async with stream:
            if len(self._serving) >= CONNECTIONS_MOST:
                with anyio.move_on_after(_CLOSE_S):
                    await stream.send(_FULL)
                return
            scope, over = anyio.CancelScope(), anyio.Event()
            self._serving[scope] = over
            try:
                with scope:
                    await self._serve(Connection(stream, self._patience))
            except GONE:
                pass  # the guest has left
            except Exception as error:  # noqa: BLE001 - one connection must not end the others
                # Only where it was: what it says may hold what a guest or an API has said.
                where = [
                    f"{at.name}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)
                ]
                _log.error("egress_failed", error=type(error).__name__, where=where[-6:])
            finally:
                del self._serving[scope]
                over.set()

    async def close(self) -> None:
        """End every connection, and see each told of."""
        serving = dict(self._serving)
        with anyio.move_on_after(_TELL_S, shield=True):
            for scope in serving:
                scope.cancel()
            for over in serving.values():
                await over.wait()

    async def _serve(self, connection: Connection) -> None:
        while True:
            draft = Draft()
            try:
                head = await connection.request()
            except Refusal as refusal:
                await self._refuse(connection, refusal, draft, last=True)
                await self._tell(connection, draft)
                return
            if head is None:
                return
            if head.path == REPORT_PATH:
                await self._take_report(connection, head)
            else:
                await self._pass(connection, head, Draft(head.method, "", head.path))
            if not connection.next_cycle():
                return

    async def _take_report(self, connection: Connection, head: Head) -> None:
        try:
            await self._reports.serve(connection, head)
        except Refusal as refusal:
            await self._refuse(connection, refusal, Draft())

    async def _pass(self, connection: Connection, head: Head, draft: Draft) -> None:
        try:
            if head.method == "CONNECT" or not head.target.startswith("/"):
                await self._proxy.serve(connection, head, draft)
            elif head.path.startswith(SECRETS_PATH):
                await self._secrets.serve(connection, head, draft)
            else:
                await self._models.serve(connection, head, draft)
        except Refusal as refusal:
            await self._refuse(connection, refusal, draft)
        finally:
            await self._tell(connection, draft)

    async def _refuse(
        self, connection: Connection, refusal: Refusal, draft: Draft, *, last: bool = False
    ) -> None:
        draft.refused = refusal.why
        if connection.answered:
            connection.abort()
            return
        draft.status = refusal.status
        text = f"{refusal.why}\n".encode()
        await connection.answer(refusal.status, text, "text/plain; charset=utf-8", last=last)

    async def _tell(self, connection: Connection, draft: Draft) -> None:
        await self._note()
        if self._told >= TOLD_MOST:
            self.unlisted += 1
            return
        self._told += 1
        with anyio.move_on_after(_TELL_S, shield=True) as patience:
            try:
                await self._on_exchange(draft.done(connection.taken, connection.given))
            except errors.OrchestratorError as error:
                _log.warning("egress_not_told", code=error.code, reason=error.message)
                self.unlisted += 1
        if patience.cancelled_caught:
            self.unlisted += 1

    async def _note(self) -> None:
        with anyio.move_on_after(_TELL_S, shield=True):
            async with self._noting:
                spent = self.spent
                if spent == self._noted:
                    return
                try:
                    await self._on_spent(spent)
                except errors.OrchestratorError as error:
                    _log.warning("egress_not_told", code=error.code, reason=error.message)
                else:
                    self._noted = spent


@asynccontextmanager
async def open_egress(
    policy: Policy,
    credentials: Credentials,
    on_exchange: OnExchange,
    *,
    folder: Path | None = None,
    budget: Budget | None = None,
    spent: Spent | None = None,
    shared: Shared | None = None,
    prices: Prices | None = None,
    on_exhausted: OnExhausted = _untold,
    on_spent: OnSpent = _untold,
    holds: bool = False,
    on_report: OnReport | None = None,
    resolver: Resolver = look_up,
    upstream: Upstream | None = None,
    patience: Patience | None = None,
) -> AsyncGenerator[Egress]:
    """Let one run out, as far as its policy goes, until the block ends.

    With a `folder`, which nobody else may enter, it listens there on a socket called `egress`.
    `on_exchange` is told of each request once it is over, `on_exhausted` once when one is refused
    because the budget is used up, and again after another budget was set; `holds` lets such
    requests wait for another budget instead. `shared` is asked before each request for a limit that
    others spend of too. `spent` is what was spent before, in an earlier
    endpoint of the same run, and `on_spent` is told what is spent by now whenever that changes.
    Without `upstream` it opens connections of its own; a daemon shares one among its runs.

    Raises: NotFound when the policy names a credential that is not there; InvalidInput when that is
    a secret without an address, or the folder cannot hold the socket.
    """
    refuse_unusable(credentials, policy.secrets, policy.credentials)
    async with AsyncExitStack() as life:
        upstream = upstream or await life.enter_async_context(open_upstream())
        account = Account(budget or Budget(), prices or Prices({}), spent, shared)
        listening = None if folder is None else life.enter_context(_listen(folder / SOCKET))
        egress = Egress(
            None if folder is None else folder / SOCKET,
            account,
            Models(policy, credentials, account, upstream, on_exhausted, holds=holds),
            Proxy(policy, resolver, upstream),
            Secrets(policy, credentials, upstream),
            Reports(on_report),
            on_exchange,
            on_spent,
            patience or Patience(),
        )
        accept = [] if listening is None else [partial(_accept, listening, egress.serve)]
        await life.enter_async_context(beside(*accept))
        try:
            yield egress
        finally:
            await egress.close()


async def _accept(
    listening: socket.socket, serve: Callable[[ByteStream], Coroutine[Any, Any, None]]
) -> None:
    async with anyio.create_task_group() as connections:
        while True:
            try:
                connection, _ = listening.accept()
            except BlockingIOError:
                await anyio.wait_readable(listening)
            except OSError as error:
                _log.warning("egress_accept_failed", error=error.strerror)
                await anyio.sleep(_ACCEPT_PAUSE_S)
            else:
                # Not anyio's own stream for unix sockets: one that is left while it waits for
                # data complains of data that comes at the same moment.
                connections.start_soon(serve, await SocketStream.from_socket(connection))


@contextmanager
def _listen(path: Path) -> Generator[socket.socket]:
    """Listen on a socket in a folder that nobody else may enter. Raises: InvalidInput."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with closing(listening):
        try:
            if path.parent.stat().st_mode & 0o077:
                raise errors.InvalidInput(
                    f"others may enter {path.parent}, which holds a run's socket"
                )
            listening.bind(str(path))
            path.chmod(0o600)
            listening.listen(CONNECTIONS_MOST)
        except OSError as error:
            raise errors.InvalidInput(f"no socket can be made at {path}: {error}") from error
        try:
            yield listening
        finally:
            with suppress(OSError):  # the folder is gone already, or its disk is
                path.unlink()
