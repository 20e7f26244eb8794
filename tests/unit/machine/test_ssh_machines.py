"""Machines of foreign images: when their servers go, come back, let nobody in, or lie."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from machines import LONG_S, new_machine_id, removed_in_the_end
from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Link, MachineSpec
from microvm_orchestrator.machine.hypervisor import AnyKind, open_hypervisor
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.machine.ssh import our_key
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.runner import Ssh, read
from ssh_guest import Foreign, make_foreign
from sshd import SSHD, login_name

# For guests that never let us in; to be refused takes a tenth of it on a busy machine.
NOT_SOON_S = 15.0


@pytest.fixture
def foreign(tmp_path: Path) -> Foreign:
    foreign = make_foreign(tmp_path / "foreign")
    foreign.authorize(our_key(tmp_path).public)
    return foreign


@pytest.fixture
async def hypervisor(tmp_path: Path) -> AsyncGenerator[AnyKind]:
    with anyio.fail_after(LONG_S):
        async with open_hypervisor(tmp_path) as hypervisor, removed_in_the_end(hypervisor):
            yield hypervisor


def spec(foreign: Foreign, **more: object) -> MachineSpec:
    runner = replace(read(foreign.runner), ssh=Ssh(login_name()))
    return replace(MachineSpec(new_machine_id(), runner, boot_timeout_s=LONG_S), **more)  # type: ignore[arg-type]  # named as the fields are


async def test_a_server_that_is_gone_leaves_a_machine_that_runs_and_is_met_when_it_is_back(
    hypervisor: AnyKind, foreign: Foreign
) -> None:
    machine = await hypervisor.start(spec(foreign))
    for _ in range(2):
        shell = machine.shell
        foreign.take_away_server()
        await machine.hung_up()
        with pytest.raises(errors.MachineUnreachable, match=r"the SSH server in .* is not there"):
            _ = machine.shell
        with pytest.raises(errors.MachineUnreachable):
            await shell.exec(Command(["true"]))
        assert machine.state is MachineState.RUNNING
        foreign.put_back_server()
        shell = await machine.reached()
        assert (await shell.exec(Command(["echo", "back"]))).stdout == b"back\n"


async def test_a_guest_that_lets_us_in_late_is_waited_for(
    hypervisor: AnyKind, foreign: Foreign, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    os.mkfifo(asked)
    foreign.authorize("")
    foreign.lie(f"echo asked >{asked}; exec {SSHD} -i -e -f {foreign.folder}/config")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hypervisor.start, spec(foreign))
        for _ in range(2):  # who asks again was refused
            assert await anyio.to_thread.run_sync(asked.read_text) == "asked\n"
        (foreign.folder / "liar").unlink()
        foreign.authorize(our_key(tmp_path).public)


# By what each says, as it starts up, whoever answers at the port of the server.
LIARS = {
    "printf 'SSH-2.0-liar\\r\\n'; head -c 100000 /dev/zero; exec sleep 60": "broke the protocol",
    "printf 'SSH-1.5-old\\r\\n'; exec sleep 60": "unsupported SSH version",
    "yes hello": "too many banner lines",
    "exit 0": "connection to the guest has ended",
}


async def test_who_is_no_server_that_lets_us_in_fails_its_machine_with_a_reason(
    hypervisor: AnyKind, tmp_path: Path
) -> None:
    async def fails(number: int, script: str, says: str) -> None:
        foreign = make_foreign(tmp_path / str(number))
        if script:
            foreign.lie(script)
        with pytest.raises(errors.MachineBootFailed, match=f"(?i)not ready within .*{says}"):
            await hypervisor.start(spec(foreign, boot_timeout_s=NOT_SOON_S))

    refused = {"": f"{login_name()}.* with the key SHA256:"}
    async with anyio.create_task_group() as tasks:
        for number, (script, says) in enumerate({**LIARS, **refused}.items()):
            tasks.start_soon(fails, number, script, says)


async def test_who_only_claims_to_be_the_server_later_is_not_reached_and_harms_nobody(
    hypervisor: AnyKind, foreign: Foreign
) -> None:
    machine = await hypervisor.start(spec(foreign))
    foreign.lie("printf 'SSH-2.0-liar\\r\\n'; head -c 100000 /dev/zero; exec sleep 60")
    foreign.kill_server()
    await machine.hung_up()
    with pytest.raises(errors.MachineUnreachable):
        _ = machine.shell
    assert machine.state is MachineState.RUNNING
    (foreign.folder / "liar").unlink()
    shell = await machine.reached()
    assert (await shell.exec(Command(["echo", "back"]))).stdout == b"back\n"


async def test_a_foreign_guest_is_given_no_links(hypervisor: AnyKind, foreign: Foreign) -> None:
    links = (Link("52:54:00:12:34:56"),)
    with pytest.raises(errors.NotOffered, match="no links of ours"):
        await hypervisor.start(spec(foreign, links=links))


async def test_a_lost_memory_of_a_host_key_is_no_first_meeting(
    hypervisor: AnyKind, foreign: Foreign
) -> None:
    machine = await hypervisor.start(spec(foreign))
    (machine.record.folder / "ssh_host_key").unlink()
    foreign.kill_server()
    await machine.hung_up()
    with pytest.raises(errors.MachineUnreachable, match="pinned is none"):
        await machine.reached()
