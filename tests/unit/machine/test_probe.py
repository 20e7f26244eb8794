"""What is measured of this host, and how long it is believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Accel
from microvm_orchestrator.machine.probe import Acceleration, choose, measure, probe

NATIVE = Acceleration(kvm=True, why="natively")
EMULATED = Acceleration(kvm=False, why="too slow", tsc_khz=2_600_000)


async def test_this_host_is_measured_within_its_deadline_and_says_why() -> None:
    found = await measure()
    assert found.why
    if found.tsc_khz is not None:
        assert 100_000 < found.tsc_khz < 10_000_000


async def test_what_was_measured_is_asked_for_again_only_after_a_boot(tmp_path: Path) -> None:
    found = await probe(tmp_path)
    path = tmp_path / "acceleration.json"
    kept = path.read_text()
    path.write_text(kept.replace(found.why, "remembered"))
    assert (await probe(tmp_path)).why == "remembered"
    path.write_text(kept.replace('"boot_id":"', '"boot_id":"before-'))
    assert (await probe(tmp_path)).kvm == found.kvm
    assert "before-" not in path.read_text()


async def test_a_damaged_memory_of_the_measurement_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "acceleration.json").write_text("{")
    await probe(tmp_path)
    assert "boot_id" in (tmp_path / "acceleration.json").read_text()


def test_auto_takes_kvm_where_it_is_usable_and_emulates_elsewhere() -> None:
    assert choose(Accel.AUTO, NATIVE) is Accel.KVM
    assert choose(Accel.AUTO, EMULATED) is Accel.TCG
    assert choose(Accel.TCG, NATIVE) is Accel.TCG


def test_who_insists_on_kvm_is_told_why_there_is_none() -> None:
    with pytest.raises(errors.Unavailable, match="too slow"):
        choose(Accel.KVM, EMULATED)
