"""The daemon: everything is made here, once, in the order it is needed.

Read `_serve` from top to bottom: settings, state directory, store, host, service, front ends,
sockets. What is made last ends first. Only this module sees all the others.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log, places
from microvm_orchestrator.deliveries import deliver
from microvm_orchestrator.events import Journal
from microvm_orchestrator.host import open_host
from microvm_orchestrator.loading import loading
from microvm_orchestrator.service.service import Service
from microvm_orchestrator.service.table import BY_NAME
from microvm_orchestrator.store.base import Keep
from microvm_orchestrator.store.sqlite import SqliteStore
from microvm_orchestrator.systemd import Systemd, open_systemd
from microvm_orchestrator.upkeep import upkeep
from microvm_orchestrator.web.app import application
from microvm_orchestrator.web.duplex import serve_duplex
from microvm_orchestrator.web.identity import Identity
from microvm_orchestrator.web.listener import Listener
from microvm_orchestrator.web.metrics import Meter
from microvm_orchestrator.web.sockets import inherited, open_tcp, open_unix
from microvm_orchestrator.web.terms import Terms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Mapping
    from pathlib import Path

    from anyio.abc import ByteStream
    from starlette.routing import BaseRoute

    from microvm_orchestrator.config import Settings
    from microvm_orchestrator.mcp_server.server import McpFrontEnd
    from microvm_orchestrator.model.access import Principal
    from microvm_orchestrator.store.base import Store

_log = log.get(__name__)

# Waits end at once and a write takes milliseconds; what is not done by then has hung.
STOP_GRACE_S = 5.0
# EX_CONFIG of sysexits.h: starting again with the same settings is of no use.
EXIT_CONFIG = 78
# What keeps us out of the state directory though the setting may be right.
_BY_ERRNO: dict[int, type[errors.OrchestratorError]] = {
    errno.EROFS: errors.StoreReadOnly,
    errno.EACCES: errors.StoreReadOnly,
    errno.EPERM: errors.StoreReadOnly,
    errno.ENOSPC: errors.StoreFull,
}
# A host that boots, and a daemon that takes over its machines, have other things to do at first.
_MCP_AFTER_S = 10.0
# Log, store, standard streams, libraries: descriptors that no client holds.
_SPARE_DESCRIPTORS = 128


def run(settings: Settings, reread: Callable[[], Settings] | None = None) -> int:
    """Be the daemon until a signal ends it, and return the exit status.

    `reread` reads the settings anew when SIGHUP asks for it.
    """
    log.configure(settings.log.level, settings.log.format)
    try:
        anyio.run(_serve, settings, reread or (lambda: settings))
    except errors.OrchestratorError as error:
        _log.error("daemon_failed", code=error.code, reason=error.message, hint=error.hint)
        return EXIT_CONFIG if isinstance(error, errors.ConfigInvalid) else 1
    except Exception as error:  # noqa: BLE001 - the last edge: what nobody planned is told and ends us
        _log.critical("daemon_crashed", exc_info=error)
        return 1
    _log.info("daemon_stopped")
    return 0


async def _serve(settings: Settings, reread: Callable[[], Settings]) -> None:
    began = time.monotonic()
    _allow_descriptors(settings.limits.max_connections)
    async with AsyncExitStack() as life:
        systemd = life.enter_context(open_systemd(os.environ))
        signals = life.enter_context(
            anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        )
        life.enter_context(_own(settings.state_dir))
        # Before the first group of tasks, which would wrap the reason why they cannot be opened.
        listening = life.enter_context(_open_sockets(settings))
        store = SqliteStore(settings.state_dir / places.STORE_FILE)
        await life.enter_async_context(store.opened())
        journal = Journal(store)
        host = await life.enter_async_context(open_host(settings, store))
        meter = Meter()
        service = Service(store, journal, host, settings, BY_NAME, meter.observe)

        terms = Terms(settings.access, settings.limits)
        identity = Identity(service, terms)
        mcp = _Mcp(service)
        http = application(service, identity, terms, meter, mcp.routes)
        listener = Listener(
            http, mcp.serve_stream, partial(serve_duplex, service, terms), identity, terms
        )

        host.agents.door.open(listener.serve_guest)

        def reload() -> None:
            _reload(reread, terms)

        def stop() -> None:
            journal.stop()
            listener.close()

        background = await life.enter_async_context(anyio.create_task_group())
        life.callback(background.cancel_scope.cancel)
        background.start_soon(journal.pump)
        background.start_soon(upkeep, store, _keep(settings))
        background.start_soon(partial(deliver, store, journal, settings, said=host.runs.said))
        background.start_soon(mcp.run)
        background.start_soon(_be_watched, systemd, store)

        async with anyio.create_task_group() as front:
            front.start_soon(_until_empty, listener, listening, front.cancel_scope)
            systemd.ready()
            _log.info("daemon_ready", seconds=round(time.monotonic() - began, 3))
            await _conduct(signals, systemd, reload, stop)
            front.cancel_scope.cancel()


async def _until_empty(
    listener: Listener, listening: list[socket.socket], scope: anyio.CancelScope
) -> None:
    await listener.serve(listening)
    scope.cancel()


def _keep(settings: Settings) -> Keep:
    kept = settings.store
    return Keep(
        event_age_s=kept.events.max_age_s,
        event_count=kept.events.max_count,
        task_age_s=kept.tasks.max_age_s,
        task_count=kept.tasks.max_count,
    )


async def _conduct(
    signals: AsyncIterator[signal.Signals],
    systemd: Systemd,
    reload: Callable[[], None],
    stop: Callable[[], None],
) -> None:
    """Do as signals say, and return when nobody inside is to be waited for any longer.

    HUP reloads. The first TERM or INT stops politely, the second at once.
    """
    async for number in signals:
        if number != signal.SIGHUP:
            break
        systemd.reloading()
        reload()
        systemd.ready()
    systemd.stopping()
    _log.info("daemon_stopping", grace_s=STOP_GRACE_S)
    stop()
    with anyio.move_on_after(STOP_GRACE_S) as grace:
        async for number in signals:
            if number != signal.SIGHUP:
                break
    why = "they took too long" if grace.cancelled_caught else "a second signal came"
    _log.warning("requests_cut_off", why=why)


def _reload(reread: Callable[[], Settings], terms: Terms) -> None:
    """Take over the settings that can change; with broken ones, go on as before."""
    try:
        settings = reread()
    except errors.ConfigInvalid as error:
        _log.error("reload_failed", reason=error.message, hint=error.hint)
        return
    log.configure(settings.log.level, settings.log.format)
    terms.adopt(settings)
    _log.info("settings_reloaded")


async def _be_watched(systemd: Systemd, store: Store) -> None:
    """Tell systemd that we live, as long as the event loop turns and the store answers."""
    if systemd.watchdog_s is None:
        return
    while True:
        try:
            await store.cursor()
        except errors.Unavailable as error:
            _log.error("store_does_not_answer", code=error.code, reason=error.message)
        else:
            systemd.alive()
        await anyio.sleep(systemd.watchdog_s / 2)


class _Mcp:
    """The MCP front end. Its libraries take a second to load, for which its first client waits."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._wanted = anyio.Event()
        self._loaded = anyio.Event()
        self._front_end: McpFrontEnd | None = None

    async def run(self) -> None:
        since = await self._service.store.cursor()
        with anyio.move_on_after(_MCP_AFTER_S):
            await self._wanted.wait()
        make = await anyio.to_thread.run_sync(_load_mcp)
        front_end = make(self._service)
        async with front_end.running(since):
            self._front_end = front_end
            self._loaded.set()
            await anyio.sleep_forever()

    async def serve_stream(
        self, stream: ByteStream, principal: Principal, profile: str, settings: Mapping[str, str]
    ) -> None:
        front_end = await self._get()
        # Not before: two threads that import the same libraries at once can lock each other out.
        from microvm_orchestrator.mcp_server.transport import serve_stream  # noqa: PLC0415  # not before

        await serve_stream(front_end, stream, principal, profile, settings)

    async def routes(self) -> list[BaseRoute]:
        front_end = await self._get()
        from microvm_orchestrator.web import madrox  # noqa: PLC0415  # not before, as above

        return [*front_end.http_routes(), *madrox.routes(front_end)]

    async def _get(self) -> McpFrontEnd:
        self._wanted.set()
        while self._front_end is None:
            await self._loaded.wait()
        return self._front_end


def _load_mcp() -> type[McpFrontEnd]:
    with loading():
        from microvm_orchestrator.mcp_server.server import McpFrontEnd  # noqa: PLC0415 - it is slow

    return McpFrontEnd


@contextmanager
def _own(state_dir: Path) -> Generator[None]:
    """Keep other daemons out of the state directory, which is made where it is missing.

    Raises: AlreadyRunning; StoreReadOnly; StoreFull; ConfigInvalid when it is none.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(state_dir / places.LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _BY_ERRNO.get(error.errno or 0, errors.ConfigInvalid)(
            f"cannot use the state directory {state_dir}: {error.strerror}",
            hint="name another with --state-dir",
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.AlreadyRunning(f"another daemon works in {state_dir}") from error
        yield
    finally:
        os.close(lock)


@contextmanager
def _open_sockets(settings: Settings) -> Generator[list[socket.socket]]:
    """Listen: on what systemd hands over, and where it hands over none, as the settings say."""
    with ExitStack() as stack:
        listening = [stack.enter_context(each) for each in inherited(os.environ)]
        local = {each.family == socket.AF_UNIX for each in listening}
        if True not in local:
            listening.append(stack.enter_context(open_unix(settings.socket)))
        if False not in local:
            network = stack.enter_context(open_tcp(settings.tcp))
            listening += [] if network is None else [network]
        yield listening


def _allow_descriptors(connections: int) -> None:
    """Raise the soft limit on open files, which is low for the sake of programs that select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
