"""The contract of `Shell` once more, with a real guest behind a real virtio port.

One machine serves every test, each on a connection of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream

from bare_qemu import Bare, booting
from contract.test_shell import *  # noqa: F403  # the same suite on another guest
from guests import Guest
from machines import guest_image
from microvm_orchestrator.machine.shell import Command

_numbers = itertools.count()


@pytest.fixture(scope="module")
async def machine(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Bare]:
    image = await guest_image()
    async with booting(tmp_path_factory.mktemp("machine"), image, memory_mib=512) as machine:
        yield machine


@pytest.fixture
async def guest(machine: Bare) -> Guest:
    folder = Path(f"/tmp/test-{next(_numbers)}")

    @asynccontextmanager
    async def connect() -> AsyncGenerator[ByteStream]:
        async with await anyio.connect_unix(machine.agent) as transport:
            yield transport

    guest = Guest(connect, folder)
    async with guest.shell() as shell:
        await shell.exec(Command(["mkdir", str(folder)]))
    return guest
