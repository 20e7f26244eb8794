"""Cache disks: whose they are, who comes back to which, and which one goes for another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.caches import Caches, Volume
from microvm_orchestrator.machine.qemu import disks, qcow2


def caches(folder: Path, count: int = 4) -> Caches:
    return Caches(folder / "caches", size_mib=16, count=count)


async def used_at(here: Caches, volume: Volume, seconds: int) -> None:
    """Say when it was used, so that no test waits for a clock."""
    assert volume in [*await here.volumes(), volume]
    os.utime(volume.folder / "use.json", (seconds, seconds))


async def test_a_machine_comes_back_to_the_volume_that_it_had(tmp_path: Path) -> None:
    here = caches(tmp_path)
    first, second = await here.take("m_1", "repo"), await here.take("m_2", "repo")
    assert first.name != second.name
    here.release("m_1")
    here.release("m_2")
    assert (await here.take("m_2", "repo")).name == second.name
    assert (await here.take("m_1", "repo")).name == first.name


async def test_one_that_was_displaced_comes_home_again(tmp_path: Path) -> None:
    here = caches(tmp_path)
    home = await here.take("m_1", "repo")
    here.release("m_1")
    # There is no other one, so another machine may have it.
    assert (await here.take("m_2", "repo")).name == home.name
    away = await here.take("m_1", "repo")
    assert away.name != home.name
    here.release("m_1")
    here.release("m_2")
    await used_at(here, home, 1_000)
    await used_at(here, away, 2_000)
    assert (await here.take("m_1", "repo")).name == home.name


async def test_no_two_domains_and_no_two_machines_ever_have_one_volume(tmp_path: Path) -> None:
    here = caches(tmp_path)
    first = await here.take("m_1", "repo")
    here.release("m_1")
    other = await here.take("m_2", "repo@alice")
    assert {first.name, other.name} == {"repo/1", "repo@alice/1"}
    assert (await here.take("m_3", "repo")).name == first.name
    assert (await here.take("m_4", "repo")).name == "repo/2"
    holders = {volume.name: volume.holder for volume in await here.volumes()}
    assert holders == {"repo/1": "m_3", "repo/2": "m_4", "repo@alice/1": "m_2"}


async def test_for_another_one_the_one_goes_that_was_not_used_for_longest(tmp_path: Path) -> None:
    here = caches(tmp_path, count=2)
    old, new = await here.take("m_1", "one"), await here.take("m_2", "two")
    here.release("m_1")
    here.release("m_2")
    await used_at(here, old, 1_000)
    await used_at(here, new, 2_000)
    await here.take("m_3", "three")
    assert [volume.domain for volume in await here.volumes()] == ["three", "two"]
    assert not old.folder.parent.exists()
    await here.take("m_4", "two")
    with pytest.raises(errors.NoRoom, match=r"All 2 caches are in use$"):
        await here.take("m_5", "four")


async def test_after_a_restart_a_volume_is_known_by_its_machine(tmp_path: Path) -> None:
    before = caches(tmp_path)
    held = await before.take("m_1", "repo")
    after = caches(tmp_path)
    after.keep("m_1", held.name)
    assert (await after.take("m_2", "repo")).name != held.name
    with pytest.raises(errors.StateForbids, match="used by m_1"):
        await after.remove("repo", held.number)
    after.release("m_1")
    after.release("m_1")
    removed = await after.remove("repo", held.number)
    assert [volume.name for volume in removed] == [held.name]
    with pytest.raises(errors.NotFound):
        await after.remove("nobody")


async def test_a_home_whose_machine_was_deleted_is_anybodys(tmp_path: Path) -> None:
    here = caches(tmp_path)
    home = await here.take("m_1", "repo")
    here.release("m_1")
    await here.forget("m_1")
    assert (await here.take("m_2", "repo")).home is None
    here.release("m_2")
    (now,) = await here.volumes()
    assert (now.name, now.home) == (home.name, "m_2")


async def test_half_a_volume_is_nobodys_and_a_chain_that_is_too_long_begins_anew(
    tmp_path: Path,
) -> None:
    here = caches(tmp_path)
    volume = await here.take("m_1", "repo")
    here.release("m_1")
    for number in range(1, 20):
        qcow2.create(volume.folder / f"disk0.{number}.qcow2", 16 << 20)
    again = await here.take("m_1", "repo")
    assert len(disks.layers(again.folder, 0)) == 1
    here.release("m_1")
    (again.folder / "use.json").write_text("{")
    assert await here.volumes() == []
    assert not again.folder.exists()
