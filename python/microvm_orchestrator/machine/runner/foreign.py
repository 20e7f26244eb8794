"""A machine of any other hypervisor than QEMU, as far as its process and its guest go.

The agent, or the SSH server of who has none, is reached by vsock. Hypervisors in user space
(cloud-hypervisor, firecracker) offer that as a unix socket in the folder they run in: who connects
names a port first. Of the hypervisor's own ways to control it we use none, so its machines can be
started, reached, stopped and killed, and nothing more.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine import sockets
from microvm_orchestrator.machine.base import unheeded
from microvm_orchestrator.machine.living import LivingMachine
from microvm_orchestrator.machine.runner import start

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from anyio.abc import TaskGroup, UNIXSocketStream

    from microvm_orchestrator.machine.base import Snapshot, Terminal, Within

# Where microvm.nix lets the hypervisor listen, and on which port our agent is in the guest.
SOCKET = "notify.vsock"
AGENT_PORT = 1024
# Where systemd lets sshd listen, and everybody who goes by it.
SSH_PORT = 22
# The answer is the number of our own port, and comes at once or not at all.
_ANSWER_S = 5.0
_MAX_ANSWER = 32
# Between two tries to reach a guest that boots: nobody tells when its agent begins to listen.
_AGAIN_S = 0.1


class ForeignMachine(LivingMachine):
    """A machine whose hypervisor we only start and end."""

    @asynccontextmanager
    async def attach(self) -> AsyncGenerator[Terminal]:
        """Raises: NotOffered."""
        self._refuse("its console cannot be typed at")
        yield

    async def pause(self) -> Within:
        self._refuse("it cannot be paused")

    async def resume(self) -> Within:
        self._refuse("it cannot be resumed")

    async def save(
        self,
        snapshot_id: str,
        *,
        memory: bool = True,
        on_taken: Callable[[], None] = unheeded,
    ) -> Snapshot:
        del memory, on_taken
        self._refuse(f"it cannot be saved as {snapshot_id}")

    async def reach_agent(self) -> None:
        """Try to reach the agent until it is there; whoever calls sets the deadline."""
        await self.reach_booting(_ANSWER_S, _AGAIN_S, (errors.MachineUnreachable,))

    @asynccontextmanager
    async def _controlled(self, group: TaskGroup) -> AsyncGenerator[None]:  # noqa: ARG002 # there is nothing to follow
        yield

    async def _call(self) -> UNIXSocketStream:
        try:
            stream = await sockets.connect(self.record.run / SOCKET)
        except OSError as error:
            raise errors.MachineUnreachable(f"there is no vsock: {error.strerror}") from error
        try:
            with anyio.fail_after(_ANSWER_S):
                await _name_port(stream, AGENT_PORT if self.ssh is None else SSH_PORT)
        except BaseException as error:
            await stream.aclose()
            if isinstance(error, TimeoutError | anyio.EndOfStream | anyio.BrokenResourceError):
                raise errors.MachineUnreachable("nobody listens in the guest") from error
            raise
        return stream

    async def _press_power(self) -> None:
        self._refuse("it can be stopped by its agent only, which is not there")

    async def _hear_last_words(self) -> None:
        """It has none."""

    def _bound_files(self, console_size: int) -> None:
        """Let it write files of any size: which volumes it has is the runner's own business."""

    async def _clean_up(self) -> None:
        await start.end_all(self.host, self.record)

    def _refuse(self, what: str) -> NoReturn:
        self._check()
        hypervisor = start.runner_of(self.spec).hypervisor
        raise errors.NotOffered(
            f"machine {self.machine_id} is run by {hypervisor}: {what}",
            hint='build the runner with microvm.hypervisor = "qemu"',
        )


async def _name_port(stream: UNIXSocketStream, port: int) -> None:
    await stream.send(b"CONNECT %d\n" % port)
    answer = b""
    # Byte by byte: what comes behind the line is the agent's.
    while not answer.endswith(b"\n") and len(answer) < _MAX_ANSWER:
        answer += await stream.receive(1)
    if not answer.startswith(b"OK "):
        raise errors.ProtocolBroken(f"its vsock answers {answer!r}")
