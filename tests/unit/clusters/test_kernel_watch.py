"""What keeps a watch of kernels bounded, and its events told once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio

from microvm_orchestrator.clusters.kernel_events import ClusterLog, Hearing, NodeLog
from microvm_orchestrator.clusters.kernel_ring import Place
from microvm_orchestrator.clusters.kernel_watch import Allowance
from microvm_orchestrator.model.kernel_log import (
    KernelNews,
    KernelPlace,
    KernelReport,
    News,
    Source,
    Trouble,
)
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.store.base import Match
from microvm_orchestrator.store.sqlite import SqliteStore

NODE = NodeLog(name="n1", machine_id="m_1")
LOG = ClusterLog(cluster_id="c_1", name="trio", owner="alice", nodes=(NODE,))
BUG = KernelReport(Trouble.BUG, "BUG: Bad page state in process x  pfn:11")
HEARD = KernelNews(News.REPORT, Source.RING, report=BUG, boot_id="first", place=KernelPlace(7))


@asynccontextmanager
async def store_in(folder: Path) -> AsyncGenerator[SqliteStore]:
    store = SqliteStore(folder / "store.db")
    async with store.opened():
        yield store


async def bodies(store: SqliteStore) -> list[tuple[str, dict[str, Any]]]:
    events = (await store.events(None, Match(), 1000, SYSTEM)).events
    return [(each.kind, cast("dict[str, Any]", each.body)) for each in events]


def test_a_ring_is_followed_once_and_what_is_missing_is_counted() -> None:
    place = Place("first")
    assert place.later([b"6,10,1,-;a", b" DEVICE=b", b"6,11,2,-;c"]) == (
        [b"6,10,1,-;a", b"6,11,2,-;c"],
        0,
    )
    # It was read from its beginning again, and has gone on by more than it holds.
    assert place.later([b"6,11,2,-;c", b"6,15,3,-;d"]) == ([b"6,15,3,-;d"], 3)
    place.enter("first")
    assert place.seq == 15
    place.enter("second")
    assert place.later([b"6,0,1,-;e"]) == ([b"6,0,1,-;e"], 0)
    # A guest may number as it likes.
    assert place.later([b"6,99999999999999999999,1,-;f"])[1] == 10**12


async def test_an_allowance_is_spent_at_once_and_earned_over_time() -> None:
    allowance = Allowance(100, 10)
    assert allowance.spend(100) == 0
    owed = allowance.spend(50)
    assert 4 < owed <= 5
    several = Allowance(2, 0.001)
    assert [several.spend_one() for _ in range(4)] == [True, True, False, False]


async def test_the_same_trouble_of_a_boot_is_one_event_also_for_the_next_daemon(
    tmp_path: Path,
) -> None:
    async with store_in(tmp_path) as store:
        first = Hearing(store, LOG)
        for _ in range(3):
            await first.hear("n1", HEARD)
        other = replace(BUG, headline="BUG: Bad page state in process x  pfn:22")
        await first.hear("n1", replace(HEARD, report=other))
        [(kind, body)] = await bodies(store)
        assert (kind, body["node"], body["trouble"], body["headline"]) == (
            *("kernel-log.trouble", "n1", "bug", BUG.headline),
        )
        # What the next daemon reads is what stood beside the event.
        second = Hearing(store, first.log)
        assert second.log.nodes[0].place == KernelPlace(7)
        await second.hear("n1", HEARD)
        assert len(await bodies(store)) == 1
        # Another boot is another trouble.
        await second.hear("n1", replace(HEARD, boot_id="second"))
        assert len(await bodies(store)) == 2


async def test_a_guest_that_makes_up_trouble_has_an_allowance_and_the_rest_is_counted(
    tmp_path: Path,
) -> None:
    async with store_in(tmp_path) as store:
        hearing = Hearing(store, LOG)
        for number in range(500):
            # Told apart by their words, since numbers are not what they are told apart by.
            words = "x" * number
            await hearing.hear("n1", replace(HEARD, report=replace(BUG, headline=words)))
        told = await bodies(store)
        assert len(told) == 20
        [node] = hearing.log.nodes
        assert len(node.told) == 20
        assert hearing.untold("n1") == 480


async def test_a_node_is_told_silent_and_heard_again_and_dropped_lines_once_a_boot(
    tmp_path: Path,
) -> None:
    async with store_in(tmp_path) as store:
        hearing = Hearing(store, LOG)
        dropped = KernelNews(News.DROPPED, Source.RING, count=9, boot_id="first")
        ended = KernelNews(News.NODE, state=MachineState.CRASHED, answers=False, reason="panic")
        began = KernelNews(News.NODE, state=MachineState.RUNNING, place=KernelPlace(70))
        for news in (dropped, dropped, ended, began, dropped):
            await hearing.hear("n1", news)
        told = await bodies(store)
        assert [kind.partition(".")[2] for kind, _ in told] == [
            *("dropped", "silent", "heard", "dropped"),
        ]
        assert (told[1][1]["state"], told[1][1]["reason"]) == ("crashed", "panic")
        assert hearing.log.nodes[0].place == KernelPlace(70)
        with anyio.fail_after(5):
            assert (await store.check()).problems == ()
