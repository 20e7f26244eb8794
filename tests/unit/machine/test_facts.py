"""What `doctor` says of hosts, of this one and of others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from microvm_orchestrator.machine.facts import Fact, Observed, explain, has_module, observe
from microvm_orchestrator.machine.probe import Acceleration

WORKSTATION = Observed(
    acceleration=Acceleration(kvm=True, why="guest code runs at 0.31 ns an instruction: natively"),
    qemu="QEMU emulator version 9.1.2",
    nix="nix (Nix) 2.24.9",
    nft="nftables v1.1.0",
    libvirt="libvirt 9.0.0 at qemu:///system",
    libvirt_missing="",
    tun=True,
    vhost_vsock=True,
    netem=True,
    memory_available_mib=30_000,
    limits="limits are enforced on cpu, memory, pids",
)


def fact(seen: Observed, name: str) -> Fact:
    (found,) = [fact for fact in explain(seen) if fact.name == name]
    return found


def test_a_host_with_everything_has_nothing_to_complain_of() -> None:
    assert {fact.state for fact in explain(WORKSTATION)} == {"ok"}


def test_a_host_without_kvm_is_warned_of_and_one_that_cannot_emulate_either_fails() -> None:
    why = "guest code runs at 265.00 ns an instruction: emulated, too slow to use"
    slow = replace(WORKSTATION, acceleration=Acceleration(kvm=False, why=why, tsc_khz=2_600_000))
    assert fact(slow, "kvm").state == "warning"
    assert fact(slow, "kvm").found == f"{why}; the TSC counts 2600 MHz"
    blind = replace(WORKSTATION, acceleration=Acceleration(kvm=False, why=why))
    assert fact(blind, "kvm").state == "failed"


def test_without_a_qemu_that_is_new_enough_no_machine_runs() -> None:
    assert fact(replace(WORKSTATION, qemu=None), "qemu").state == "failed"
    assert fact(replace(WORKSTATION, qemu="QEMU emulator version 6.2.0"), "qemu").state == "failed"
    assert fact(replace(WORKSTATION, qemu="QEMU emulator version 10.0.2"), "qemu").state == "ok"


def test_each_fact_says_what_it_means_and_no_two_have_one_name() -> None:
    bare = Observed(
        acceleration=Acceleration(kvm=False, why="/dev/kvm is not there"),
        qemu=None,
        nix=None,
        nft=None,
        libvirt=None,
        libvirt_missing="nobody answers",
        tun=False,
        vhost_vsock=False,
        netem=False,
        memory_available_mib=100,
        limits="no second version of control groups is mounted",
    )
    facts = explain(bare)
    assert all(fact.state != "ok" and fact.found and fact.meaning for fact in facts)
    assert len({fact.name for fact in facts}) == len(facts)


async def test_this_host_is_seen_as_it_is(tmp_path: Path) -> None:
    seen = await observe(tmp_path, qemu="no-such-qemu")
    assert seen.qemu is None
    assert seen.memory_available_mib > 0
    assert {fact.name for fact in explain(seen)} >= {"kvm", "qemu", "memory", "netem"}


@pytest.mark.parametrize("packed", ["", ".xz"])
def test_a_part_of_the_kernel_is_found_wherever_the_distribution_keeps_it(
    tmp_path: Path, packed: str
) -> None:
    places = (tmp_path / "usual", tmp_path / "nixos")
    assert not has_module("no_such_part", places)
    folder = places[1] / os.uname().release
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text(f"kernel/net/sched/no_such_part.ko{packed}:\n")
    assert has_module("no_such_part", places)
    assert not has_module("such_part", places)
