"""What hosts that come and go see of a real virtio port."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from bare_qemu import booting
from guests import START_S
from machines import LONG_S, guest_image
from microvm_orchestrator.machine.channel import open_shell
from microvm_orchestrator.machine.shell import Command, Shell
from microvm_orchestrator.machine.sockets import hang_up

HOSTS = 60
FLOODS = ["one", "two", "three"]


async def test_every_host_is_greeted_however_the_last_one_left(tmp_path: Path) -> None:
    """Each breaks off in the middle of floods or when they stand still, and the next comes at once.

    On a busy host this failed when the agent took a late hang-up for one of its new host.
    """
    image = await guest_image()
    async with booting(tmp_path, image) as machine:
        async with machine.shell() as shell, AsyncExitStack() as started:
            for name in FLOODS:
                flood = shell.stream(Command(["yes"]), exec_id=name, keep=True)
                await started.enter_async_context(flood)
        for number in range(HOSTS):
            transport = await anyio.connect_unix(machine.agent)
            async with open_shell(transport, greeting_s=START_S) as shell, AsyncExitStack() as seen:
                for name in FLOODS:
                    await seen.enter_async_context(shell.attach(name))
                if number % 2:
                    await _standstill(shell)
                hang_up(transport)
        with anyio.fail_after(LONG_S):
            async with machine.shell() as shell:
                for name in FLOODS:
                    async with shell.attach(name, keep=False):
                        pass
                while await shell.jobs():
                    await shell.ping()


async def _standstill(shell: Shell) -> None:
    """Wait until the floods have filled all that nobody reads."""
    before, now = None, await shell.jobs()
    while before != now:
        for _ in range(20):
            await shell.ping()
        before, now = now, await shell.jobs()
