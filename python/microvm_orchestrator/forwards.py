"""Ports of guests on the host, and services of the host in guests, with no network in between.

Every connection goes through the machine's one way into its guest. Each forward has a record, so
it is there again after a restart of its machine or of the daemon, on the same port, and goes with
its machine. Connections are bounded; a forward that is removed ends those it has. Above is the
service; below, the machines and the shell of each.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
from anyio.abc import ByteStream, SocketAttribute

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine.shell import Tcp, Unix
from microvm_orchestrator.machines import Machines
from microvm_orchestrator.model.forward import FORWARD, Direction, Forward, ForwardState
from microvm_orchestrator.model.machine import Machine
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.splice import GONE, splice
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record

# A guest's connection carries 128 streams, for commands and files too.
CONNECTIONS_MOST = 32
FORWARDS_MOST = 32
# How long who connects is held while a guest is not reached: one that was just adopted.
_REACH_S = 10.0
# After something failed that may mend: a port that is taken, a guest that is busy.
_AGAIN_S = 1.0
# How long `add` waits to see whether a guest listens.
_FIRST_S = 5.0
_CONNECT_S = 10.0
_log = log.get(__name__)

Address = Tcp | Unix
# What is done with the far end of a connection.
Talk = Callable[[ByteStream], Awaitable[None]]


@dataclass(eq=False, slots=True)
class Open:
    """A forward that this daemon keeps."""

    forward: Forward
    connections: int = 0
    # Whether somebody listens; for a forward to the guest, on the host.
    listening: bool = False
    problem: str = ""
    # Set once it has been tried.
    tried: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Forwards:
    """The forwards of one daemon; they live as long as `running`."""

    def __init__(self, store: Store, machines: Machines, own_socket: Path) -> None:
        """`own_socket` is the daemon's: nobody reaches it with the daemon's own rights."""
        self._store = store
        self._machines = machines
        self._own_socket = own_socket
        self._open: dict[str, Open] = {}
        self._adding: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._tasks: anyio.abc.TaskGroup | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Keep the forwards that there are until the block ends."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            known = {machine.machine_id for machine in await self._machines.visible(SYSTEM)}
            for record in await every_record(self._store, FORWARD, SYSTEM):
                forward = Forward.model_validate(record.body)
                if forward.machine_id in known:
                    self._begin(Open(forward), None)
                else:
                    await self._store.erase(FORWARD, forward.forward_id, SYSTEM)
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    async def add(
        self, machine: Machine, direction: Direction, guest: Address, host: Address, by: Actor
    ) -> Open:
        """Forward connections from now on.

        Raises: InvalidInput, Denied, AlreadyExists when the address on the host is taken, NoRoom.
        """
        async with self._adding[machine.machine_id]:
            if len(self.of_machine(machine.machine_id)) >= FORWARDS_MOST:
                raise errors.NoRoom(
                    f"machine {machine.machine_id} has {FORWARDS_MOST} forwards already"
                )
            listener = None
            if direction is Direction.TO_GUEST:
                _refuse_network(host)
                listener = await _listen(host, fresh=True)
                host = _bound(listener, host)
            else:
                self._refuse_own(host)
            try:
                forward = Forward(
                    forward_id=new_id("f"),
                    machine_id=machine.machine_id,
                    owner=by.name,
                    direction=direction,
                    guest=written(guest),
                    host=written(host),
                    created_at=moment(await self._store.now()),
                )
                await self._store.save(_record_of(forward), by, expect=0)
                opened = Open(forward)
                self._begin(opened, listener)
            except BaseException:
                if listener is not None:
                    with anyio.CancelScope(shield=True):
                        await _close(listener, host)
                raise
        if self._machines.runs(machine):
            with anyio.move_on_after(_FIRST_S):
                await opened.tried.wait()
        return opened

    def visible(self, by: Actor) -> list[Open]:
        return [each for each in self._open.values() if by.sees_of(each.forward.owner)]

    def of_machine(self, machine_id: str) -> list[Open]:
        return [each for each in self._open.values() if each.forward.machine_id == machine_id]

    async def remove(self, forward_id: str, by: Actor) -> Forward:
        """End a forward with its connections. Raises: NotFound."""
        opened = self._open.get(forward_id)
        if opened is None or not by.sees_of(opened.forward.owner):
            raise errors.NotFound(f"no forward {forward_id}", hint="forward_list shows them")
        await self._store.erase(FORWARD, forward_id, by)
        opened.scope.cancel()
        await opened.ended.wait()
        return opened.forward

    async def forget_machine(self, machine_id: str) -> None:
        """A machine was deleted, and its forwards go with it."""
        for opened in self.of_machine(machine_id):
            with contextlib.suppress(errors.NotFound):
                await self.remove(opened.forward.forward_id, SYSTEM)
        self._adding.pop(machine_id, None)

    async def state(self, opened: Open) -> tuple[ForwardState, str]:
        """Tell where a forward stands, and why."""
        try:
            machine = await self._machines.get(opened.forward.machine_id, SYSTEM)
        except errors.NotFound:
            return ForwardState.FAILED, "its machine is being deleted"
        if not self._machines.runs(machine):
            return ForwardState.WAITING, f"its machine is {machine.state}"
        if opened.listening:
            return ForwardState.ACTIVE, opened.problem
        if opened.problem:
            return ForwardState.FAILED, opened.problem
        return ForwardState.WAITING, "its guest is not reached yet"

    # Keeping one.

    def _begin(self, opened: Open, listener: anyio.abc.Listener[ByteStream] | None) -> None:
        if self._tasks is None:
            raise errors.Stopping("the daemon begins no more forwards")
        self._open[opened.forward.forward_id] = opened
        self._tasks.start_soon(self._keep, opened, listener)

    async def _keep(self, opened: Open, listener: anyio.abc.Listener[ByteStream] | None) -> None:
        try:
            with opened.scope:
                if opened.forward.direction is Direction.TO_GUEST:
                    await self._keep_into_guest(opened, listener)
                else:
                    await self._keep_from_guest(opened)
        finally:
            del self._open[opened.forward.forward_id]
            opened.ended.set()

    async def _keep_into_guest(
        self, opened: Open, listener: anyio.abc.Listener[ByteStream] | None
    ) -> None:
        address = parse(opened.forward.host)
        while True:
            try:
                listener = listener or await _listen(address, fresh=False)
                try:
                    _note(opened, listening=True)
                    await listener.serve(partial(self._into_guest, opened))
                finally:
                    with anyio.CancelScope(shield=True):
                        await _close(listener, address)
            except errors.OrchestratorError as error:
                _note(opened, error.message)
            except OSError as error:
                _note(opened, f"{opened.forward.host}: {error.strerror}")
            listener = None
            await anyio.sleep(_AGAIN_S)

    async def _into_guest(self, opened: Open, near: ByteStream) -> None:
        async def connect(talk: Talk) -> None:
            machine = await self._machines.get(opened.forward.machine_id, SYSTEM)
            with anyio.fail_after(_REACH_S):
                shell = await self._machines.live(machine).reached()
            async with shell.forward(parse(opened.forward.guest)) as far:
                await talk(far)

        async with near:
            await self._connect(opened, near, connect)

    async def _keep_from_guest(self, opened: Open) -> None:
        while True:
            running = await self._machines.until_it_runs(opened.forward.machine_id)
            try:
                shell = await running.reached()
                serve = partial(self._from_guest, opened)
                async with shell.reverse(parse(opened.forward.guest), serve) as port:
                    await self._remember(opened, port)
                    _note(opened, listening=True)
                    await running.hung_up()
                _note(opened)
            except errors.StateForbids:  # it has ended, or is about to be known to have
                _note(opened)
            except errors.OrchestratorError as error:
                _note(opened, error.message)
            finally:
                opened.listening = False
            await anyio.sleep(_AGAIN_S)

    async def _from_guest(self, opened: Open, near: ByteStream) -> None:
        async def connect(talk: Talk) -> None:
            address = parse(opened.forward.host)
            self._refuse_own(address)  # the path may lead elsewhere by now
            with anyio.fail_after(_CONNECT_S):
                if isinstance(address, Unix):
                    far: ByteStream = await anyio.connect_unix(address.path)
                else:
                    far = await anyio.connect_tcp(address.host, address.port)
            async with far:
                await talk(far)

        await self._connect(opened, near, connect)

    async def _connect(
        self,
        opened: Open,
        near: ByteStream,
        connect: Callable[[Talk], Awaitable[None]],
    ) -> None:
        """Carry one connection, unless there are too many; what goes wrong ends it alone."""
        if opened.connections >= CONNECTIONS_MOST:
            opened.problem = f"a connection was refused: there are {CONNECTIONS_MOST}"
            return
        opened.connections += 1
        try:
            await connect(partial(splice, near))
        except errors.OrchestratorError as error:
            opened.problem = f"a connection failed: {error.message}"
        except TimeoutError:
            opened.problem = "a connection failed: nobody answered in time"
        except OSError as error:
            opened.problem = f"a connection failed: {error.strerror or error}"
        except GONE:
            pass  # whoever connected has left
        finally:
            opened.connections -= 1

    async def _remember(self, opened: Open, port: int) -> None:
        """Keep the port that a guest has chosen."""
        address = parse(opened.forward.guest)
        if isinstance(address, Tcp) and address.port == 0:
            guest = written(Tcp(port, address.host))
            opened.forward = opened.forward.model_copy(update={"guest": guest})
            tell = Tell("updated", audited=False)
            await self._store.save(_record_of(opened.forward), SYSTEM, tell=tell)

    def _refuse_own(self, host: Address) -> None:
        if isinstance(host, Unix) and _same(Path(host.path), self._own_socket):
            raise errors.Denied(
                "the daemon's own socket is not for guests: it would take them for the daemon's "
                "user",
                hint="forward to its network address, which asks for a token",
            )


def _same(path: Path, other: Path) -> bool:
    """Tell whether two paths lead to one file, by whatever links."""
    try:
        return path.samefile(other)
    except OSError:  # one of them is not there
        return path.resolve() == other.resolve()


def parse(text: str) -> Address:
    """Read `port`, `host:port` or the path of a unix socket. Raises: InvalidInput."""
    if text.startswith("/"):
        if len(text.encode()) > 107:
            raise errors.InvalidInput(f"{text} is longer than the 107 bytes of a socket's path")
        return Unix(text)
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535) or (colon and not host):
        raise errors.InvalidInput(
            f"{text} is no address", hint="write PORT, HOST:PORT, or the absolute path of a socket"
        )
    return Tcp(int(port), host.removeprefix("[").removesuffix("]") or "127.0.0.1")


def written(address: Address) -> str:
    if isinstance(address, Unix):
        return address.path
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def _refuse_network(host: Address) -> None:
    if isinstance(host, Tcp):
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host.host).is_loopback:
                return
        raise errors.InvalidInput(
            f"{host.host} is no address of the host itself",
            hint="forwards are listened for on 127.0.0.1 or ::1",
        )


def _note(opened: Open, problem: str = "", *, listening: bool = False) -> None:
    if problem and problem != opened.problem:
        _log.warning("forward_failed", forward=opened.forward.forward_id, why=problem)
    opened.problem, opened.listening = problem, listening
    opened.tried.set()


async def _listen(address: Address, *, fresh: bool) -> anyio.abc.Listener[ByteStream]:
    """Listen on the host; a socket of ours that an earlier daemon left is taken over."""
    try:
        if isinstance(address, Tcp):
            return await anyio.create_tcp_listener(local_host=address.host, local_port=address.port)
        if fresh and await anyio.Path(address.path).exists():
            raise errors.AlreadyExists(f"there is a file {address.path}")
        return await anyio.create_unix_listener(address.path, mode=0o600)
    except OSError as error:
        raise errors.AlreadyExists(
            f"{written(address)} cannot be listened on: {error.strerror or error}",
            hint="port 0 takes any that is free",
        ) from error


def _bound(listener: anyio.abc.Listener[ByteStream], address: Address) -> Address:
    if isinstance(address, Unix):
        return address
    port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - anyio's, not Django's
    return Tcp(int(port), address.host)


async def _close(listener: anyio.abc.Listener[ByteStream], address: Address) -> None:
    await listener.aclose()
    if isinstance(address, Unix):
        await anyio.Path(address.path).unlink(missing_ok=True)


def _record_of(forward: Forward) -> Record:
    return Record(FORWARD, forward.forward_id, forward.model_dump(mode="json"))
