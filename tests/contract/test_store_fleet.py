"""Verbs for hosts: epochs, ownership, places for gangs, durable commands, effects, holders."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.store.base import Address, CancelTasks
from microvm_orchestrator.store.fleet import (
    Command,
    Effect,
    Gang,
    HostRecord,
    Member,
    Owner,
    Reservation,
)
from storing import (
    ALICE,
    BEGIN,
    LEASE_S,
    HandClock,
    finish,
    pass_time,
    submit,
    take,
    task,
    told,
)

if TYPE_CHECKING:
    from microvm_orchestrator.store.base import Store

TTL_S = 60.0


def host(name: str, **free: int) -> HostRecord:
    return HostRecord(name, f"{name}.example:7070", dict(free), dict(free))


def gang(name: str, *sizes: int, hold_s: float = 30.0) -> Gang:
    members = (Member(f"{name}{index}", {"mib": size}) for index, size in enumerate(sizes))
    return Gang(name, tuple(members), hold_s)


async def start(store: Store, *hosts: HostRecord) -> list[int]:
    """The first word of each host's daemon; their epochs."""
    return [await store.announce(one, TTL_S, fresh=True) for one in hosts]


# Who is there


async def test_each_daemon_of_a_host_gets_the_next_epoch(store: Store) -> None:
    assert await start(store, host("h1")) == [1]
    assert await store.announce(host("h1"), TTL_S, fresh=False) == 1
    assert await start(store, host("h1"), host("h2")) == [2, 1]
    # One that goes on where nothing is known of it is as good as new.
    assert await store.announce(host("h3"), TTL_S, fresh=False) == 1
    announced = [(event.subject, event.body) for event in await told(store, "host.announced")]
    assert [subject for subject, _ in announced] == ["h1", "h1", "h2", "h3"]


async def test_a_host_is_there_as_long_as_it_says(store: Store, clock: HandClock) -> None:
    record = HostRecord("h1", "there:1", {"mib": 8}, {"mib": 4}, draining=True)
    await start(store, record)
    assert await store.hosts() == [record]
    clock.advance(TTL_S - 1)
    await store.announce(host("h1", mib=2), TTL_S, fresh=False)
    clock.advance(TTL_S - 1)
    assert await store.hosts() == [host("h1", mib=2)]
    clock.advance(1)
    assert await store.hosts() == []


# Who owns what


async def test_a_thing_has_one_owner_until_it_is_given_up(store: Store) -> None:
    await start(store, host("h1"), host("h2"))
    assert await store.locate("machine", "m1") is None
    for _ in range(2):
        assert await store.own("machine", "m1", "h1", 1)
    assert not await store.own("machine", "m1", "h2", 1)
    assert await store.own("repo", "m1", "h2", 1)
    assert await store.locate("machine", "m1") == Owner("h1", 1)
    assert not await store.disown("machine", "m1", "h2", 1)
    assert [await store.disown("machine", "m1", "h1", 1) for _ in range(2)] == [True, False]
    assert await store.own("machine", "m1", "h2", 1)
    kinds = [event.kind for event in await told(store, "machine.*")]
    assert kinds == ["machine.owned", "machine.disowned", "machine.owned"]


async def test_an_earlier_daemon_of_a_host_can_change_no_ownership(store: Store) -> None:
    await start(store, host("h1"))
    await store.own("machine", "m1", "h1", 1)
    await start(store, host("h1"))
    # The new daemon takes over what the old one had; the old one is heard no more.
    assert not await store.own("machine", "m2", "h1", 1)
    assert not await store.disown("machine", "m1", "h1", 1)
    assert await store.own("machine", "m1", "h1", 2)
    assert await store.locate("machine", "m1") == Owner("h1", 2)
    assert not await store.own("machine", "m1", "h1", 1)
    # Nor is a host that never spoke, or an epoch that was never given.
    assert not await store.own("machine", "m3", "h9", 1)
    assert not await store.own("machine", "m3", "h1", 3)


async def test_of_many_hosts_that_want_one_thing_one_gets_it(store: Store) -> None:
    names = [f"h{number}" for number in range(20)]
    await start(store, *(host(name) for name in names))
    owners: list[str] = []

    async def want(name: str) -> None:
        if await store.own("machine", "m1", name, 1):
            owners.append(name)

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(want, name)
    assert len(owners) == 1
    assert await store.locate("machine", "m1") == Owner(owners[0], 1)


# Places for machines that belong together


async def test_a_gang_is_placed_whole_or_not_at_all(store: Store) -> None:
    await start(store, host("h1", mib=10), host("h2", mib=6))
    assert await store.reserve(gang("big", 9, 6, 5)) is None
    reserved = await store.reserve(gang("a", 4, 6, 6))
    assert reserved == Reservation("a", {"a0": "h1", "a1": "h1", "a2": "h2"}, BEGIN + 30)
    assert await store.reserve(gang("b", 1)) is None
    for _ in range(2):
        await store.unreserve("a")
    assert await store.reserve(gang("b", 10)) == Reservation("b", {"b0": "h1"}, BEGIN + 30)
    kinds = [event.kind for event in await told(store, "gang.*")]
    assert kinds == ["gang.reserved", "gang.released", "gang.reserved"]


async def test_every_quantity_a_member_needs_must_be_there(store: Store) -> None:
    await start(store, host("h1", mib=10, vcpus=1), host("h2", mib=4, vcpus=8))
    both = Gang("g", (Member("m", {"mib": 4, "vcpus": 2}),), 30)
    reserved = await store.reserve(both)
    assert reserved is not None
    assert reserved.places == {"m": "h2"}
    assert await store.reserve(Gang("x", (Member("x", {"gpus": 1}),), 30)) is None
    nothing = await store.reserve(Gang("n", (Member("n", {}),), 30))
    assert nothing is not None
    assert nothing.places == {"n": "h1"}


async def test_the_same_reservation_again_gets_the_same_answer(store: Store) -> None:
    await start(store, host("h1", mib=10))
    first = await store.reserve(gang("a", 4, 4))
    assert await store.reserve(gang("a", 4, 4)) == first
    # Another wish under the same name takes the place of the first.
    changed = await store.reserve(gang("a", 9))
    assert changed is not None
    assert changed.places == {"a0": "h1"}
    assert await store.reserve(gang("b", 2)) is None


async def test_a_reservation_that_nobody_confirms_is_void_in_time(
    store: Store, clock: HandClock
) -> None:
    await store.announce(host("h1", mib=10), 600.0, fresh=True)
    assert await store.reserve(gang("a", 10)) is not None
    clock.advance(30 - 0.001)
    assert await store.reserve(gang("b", 1)) is None
    clock.advance(0.001)
    assert await store.reserve(gang("b", 10)) is not None
    # Too late to confirm: the place was given away.
    assert await store.own("machine", "a0", "h1", 1)
    await pass_time(store, clock, 31)
    assert await store.reserve(gang("c", 10)) is not None


async def test_a_confirmed_place_is_kept_until_the_host_counts_it_itself(
    store: Store, clock: HandClock
) -> None:
    await start(store, host("h1", mib=10))
    await store.reserve(gang("a", 6))
    assert await store.own("machine", "a0", "h1", 1)
    await pass_time(store, clock, 50)
    assert await store.reserve(gang("b", 6)) is None
    # The host's own figure now has the machine in it.
    await store.announce(host("h1", mib=4), TTL_S, fresh=False)
    assert await store.reserve(gang("b", 5)) is None
    assert await store.reserve(gang("b", 4)) is not None


async def test_nothing_is_placed_on_a_host_that_is_silent_or_draining(
    store: Store, clock: HandClock
) -> None:
    await start(store, HostRecord("h1", "x", {}, {"mib": 9}, draining=True), host("h2", mib=9))
    reserved = await store.reserve(gang("a", 1))
    assert reserved is not None
    assert reserved.places == {"a0": "h2"}
    clock.advance(TTL_S)
    assert await store.reserve(gang("b", 1)) is None


async def test_racing_gangs_are_never_placed_in_part_or_beyond_what_is_free(
    store: Store,
) -> None:
    """In an order of locks that changed, gangs met in a deadlock; by id none did."""
    free = {"h1": 10, "h2": 7, "h3": 5}
    await start(store, *(host(name, mib=mib) for name, mib in free.items()))
    placed: list[tuple[Gang, Reservation]] = []

    async def want(wish: Gang) -> None:
        if (reservation := await store.reserve(wish)) is not None:
            placed.append((wish, reservation))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number, sizes in enumerate(itertools.product((2, 3), (1, 4), (2, 5))):
                tasks.start_soon(want, gang(f"g{number}.", *sizes))
    assert placed
    used = dict.fromkeys(free, 0)
    for wish, reservation in placed:
        assert set(reservation.places) == {member.id for member in wish.members}
        for member in wish.members:
            used[reservation.places[member.id]] += member.needs["mib"]
    assert all(used[name] <= free[name] for name in free)


# Durable words


async def test_commands_come_in_order_until_they_are_acknowledged(store: Store) -> None:
    for number in range(5):
        await store.send("h1", Command(f"c{number}", {"n": number}))
        await store.send("h2", Command(f"d{number}", None))
    first = await store.inbox("h1", 0, limit=2)
    assert [(command.id, command.body) for command in first] == [
        ("c0", {"n": 0}),
        ("c1", {"n": 1}),
    ]
    rest = await store.inbox("h1", first[-1].seq)
    assert [command.id for command in rest] == ["c2", "c3", "c4"]
    # Until then they are there for whoever asks from the beginning.
    assert await store.inbox("h1", 0) == first + rest
    for _ in range(2):
        await store.acknowledge("h1", rest[0].seq)
    assert [command.id for command in await store.inbox("h1", 0)] == ["c3", "c4"]
    assert len(await store.inbox("h2", 0)) == 5


async def test_a_command_that_is_sent_again_is_delivered_once(store: Store) -> None:
    command = Command("c1", {"stop": "m1"})
    for _ in range(3):
        await store.send("h1", command)
    (delivered,) = await store.inbox("h1", 0)
    await store.acknowledge("h1", delivered.seq)
    # Even when its sender learns late that it was heard.
    await store.send("h1", command)
    assert await store.inbox("h1", 0) == []
    with pytest.raises(errors.KeyReused):
        await store.send("h1", Command("c1", {"stop": "m2"}))
    with pytest.raises(errors.KeyReused):
        await store.send("h2", command)


async def test_a_place_in_the_inbox_stays_true_when_old_commands_are_gone(
    store: Store, clock: HandClock
) -> None:
    await store.send("h1", Command("c1", 1))
    (first,) = await store.inbox("h1", 0)
    await store.acknowledge("h1", first.seq)
    clock.advance(30 * 86_400)
    await pass_time(store, clock, 1)
    await store.send("h1", Command("c2", 2))
    assert [command.id for command in await store.inbox("h1", first.seq)] == ["c2"]
    # After a month the same word is a new one.
    await store.send("h1", Command("c1", 1))
    assert [command.id for command in await store.inbox("h1", first.seq)] == ["c2", "c1"]


# What must happen once


async def test_a_side_effect_begins_under_the_token_and_is_remembered_when_done(
    store: Store,
) -> None:
    await submit(store, task("a"))
    held = await take(store)
    task_id, token = held.task.task_id, held.ref.token
    for _ in range(2):
        assert await store.effect(task_id, token, "merge", "old..new") == Effect("begun")
    assert not await store.effect_done("merge", token + 1, "new")
    assert not await store.effect_done("other", token, "new")
    for _ in range(2):
        assert await store.effect_done("merge", token, "new")
    # What was written down once stays.
    assert not await store.effect_done("merge", token, "newer")
    assert await store.effect(task_id, token, "merge", "old..new") == Effect("already", "new")
    kinds = [event.kind for event in await told(store, "effect.*")]
    assert kinds == ["effect.begun", "effect.done"]


async def test_a_later_attempt_takes_over_an_effect_and_fences_the_earlier(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a"))
    late = await take(store, "w1")
    task_id = late.task.task_id
    assert (await store.effect(task_id, 1, "merge", "x")).verdict == "begun"
    await pass_time(store, clock, LEASE_S)
    assert await store.effect(task_id, 1, "merge", "x") == Effect("fenced")
    await take(store, "w2")
    assert await store.effect(task_id, 1, "merge", "x") == Effect("fenced")
    assert await store.effect(task_id, 2, "merge", "y") == Effect("begun")
    assert not await store.effect_done("merge", 1, "from w1")
    assert await store.effect_done("merge", 2, "from w2")
    assert await store.effect(task_id, 2, "merge", "y") == Effect("already", "from w2")


async def test_an_effect_that_happened_before_the_lease_was_lost_is_known_to_the_next(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a"))
    held = await take(store, "w1")
    task_id = held.task.task_id
    await store.effect(task_id, 1, "merge", "x")
    await pass_time(store, clock, LEASE_S)
    # It did happen, and nobody has begun it anew.
    assert await store.effect_done("merge", 1, "new")
    await take(store, "w2")
    assert await store.effect(task_id, 2, "merge", "x") == Effect("already", "new")


async def test_only_a_running_task_has_effects_and_none_of_anothers(store: Store) -> None:
    await submit(store, task("a"), task("b"))
    first, second = await take(store), await take(store)
    await store.effect(first.task.task_id, 1, "merge", "x")
    with pytest.raises(errors.KeyReused):
        await store.effect(second.task.task_id, 1, "merge", "x")
    await finish(store, first)
    await store.amend(Address("b"), CancelTasks(), ALICE)
    for held in (first, second):
        assert await store.effect(held.task.task_id, 1, "other", "x") == Effect("fenced")
    with pytest.raises(errors.NotFound):
        await store.effect("t_00000000000000000000000000", 1, "merge", "x")


# Who has which bytes


async def test_a_host_says_what_it_holds_and_only_those_who_are_there_are_named(
    store: Store, clock: HandClock
) -> None:
    await start(store, host("h1"), host("h2"))
    for _ in range(2):
        await store.holds("h1", add=["x", "y"], drop=[])
        await store.holds("h2", add=["y", "z"], drop=["nothing"])
    assert await store.holders(["x", "y", "none"]) == {"x": ["h1"], "y": ["h1", "h2"], "none": []}
    for _ in range(2):
        await store.holds("h1", add=[], drop=["y"])
    assert await store.holders(["y"]) == {"y": ["h2"]}
    clock.advance(TTL_S)
    assert await store.holders(["x", "y"]) == {"x": [], "y": []}
