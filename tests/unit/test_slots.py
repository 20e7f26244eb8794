"""Places are bounded, held by name, and given in the order they were asked for."""

from __future__ import annotations

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.slots import Capacity, Need, Slots

SMALL = Need(256, 1)


def _slots() -> Slots:
    return Slots(Capacity(count=2, memory_mib=1024, vcpus=4))


async def test_a_full_host_refuses_who_will_not_wait_and_names_who_is_there() -> None:
    slots = _slots()
    await slots.hold("a", SMALL)
    await slots.hold("b", SMALL)
    with pytest.raises(errors.NoRoom, match=r"All 2 slots are busy\. Active machines: a, b"):
        await slots.hold("c", SMALL, wait=False)
    assert slots.waiting == []


async def test_memory_and_processors_are_bounded_too() -> None:
    slots = _slots()
    await slots.hold("a", Need(1000, 1))
    with pytest.raises(errors.NoRoom, match="1000 of 1024 MiB"):
        await slots.hold("b", Need(100, 1), wait=False)
    with pytest.raises(errors.InvalidInput, match="never fits"):
        await slots.hold("c", Need(2048, 1))


async def test_who_waits_is_admitted_in_order_and_a_large_one_is_not_overtaken() -> None:
    slots = _slots()
    await slots.hold("a", Need(900, 1))
    admitted: list[str] = []

    async def ask(owner: str, need: Need) -> None:
        await slots.hold(owner, need)
        admitted.append(owner)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "large", Need(800, 1))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(ask, "small", Need(100, 1))
        await anyio.wait_all_tasks_blocked()
        assert (admitted, slots.waiting) == ([], ["large", "small"])
        slots.release("a")
    assert admitted == ["large", "small"]
    assert slots.used() == Capacity(2, 900, 2)


async def test_one_who_stops_waiting_leaves_the_line_to_the_others() -> None:
    slots = _slots()
    await slots.hold("a", Need(1024, 1))
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as impatience:
            async with anyio.create_task_group() as inner:
                inner.start_soon(slots.hold, "large", Need(1024, 1))
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(slots.hold, "next", SMALL)
                await anyio.wait_all_tasks_blocked()
                impatience.cancel()
        assert slots.waiting == ["next"]
        slots.release("a")
    assert slots.owners == ["next"]


async def test_releasing_twice_or_for_another_frees_nothing_that_is_held() -> None:
    slots = _slots()
    await slots.hold("a", SMALL)
    slots.release("b")
    slots.release("b")
    assert slots.owners == ["a"]
    await slots.hold("a", SMALL)
    assert slots.used().count == 1


async def test_a_machine_that_runs_already_keeps_its_place_though_it_is_one_too_many() -> None:
    slots = _slots()
    for owner in "abc":
        slots.keep(owner, SMALL)
    with pytest.raises(errors.NoRoom):
        await slots.hold("d", SMALL, wait=False)
    slots.release("a")
    slots.release("b")
    await slots.hold("d", SMALL, wait=False)
