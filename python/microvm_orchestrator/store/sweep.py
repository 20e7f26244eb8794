"""What the clock does: leases run out, tasks fall due, workers fall silent, the past is let go.

Whoever could not have renewed a lease is not punished for it: after the engine itself was away,
every running lease gets two of its own lengths before it may run out.
"""

from __future__ import annotations

from microvm_orchestrator.model import transition as t
from microvm_orchestrator.model.task import FINISHED
from microvm_orchestrator.store.amend import drop_task
from microvm_orchestrator.store.base import Keep, Swept
from microvm_orchestrator.store.journal import ends_of
from microvm_orchestrator.store.lease import BATCH, open_due
from microvm_orchestrator.store.rows import Tx
from microvm_orchestrator.store.settle import ripple
from microvm_orchestrator.store.submit import ANSWERED_S

# The same for the journal, whose rows are quickly dropped.
_EVENTS_AT_ONCE = 5000


def sweep(tx: Tx, keep: Keep, reachable_since: float) -> Swept:
    requeued, failed = _expire(tx)
    opened = open_due(tx)
    lost = _lose_workers(tx, reachable_since)
    events = _trim_events(tx, keep)
    tasks = _trim_tasks(tx, keep)
    tx.run("DELETE FROM answered WHERE at < ?", tx.now - ANSWERED_S)
    tx.run("DELETE FROM reservation WHERE until < ?", tx.now)
    tx.run("DELETE FROM command WHERE heard_at < ?", tx.now - ANSWERED_S)
    return Swept(
        requeued=requeued,
        failed=failed,
        opened=opened,
        workers_lost=lost,
        dropped_events=events,
        dropped_tasks=tasks,
        next_at=_next(tx, reachable_since),
    )


def grace(tx: Tx) -> int:
    """Give every running lease two of its lengths from now. How many were extended."""
    return tx.run(
        "UPDATE task SET"
        " lease_until = max(lease_until, ?1 + 2 * lease_s),"
        " deadline = max(deadline, ?1 + 2 * lease_s),"
        " expires_at = max(expires_at, ?1 + 2 * lease_s)"
        " WHERE state = 'running'",
        tx.now,
    )


def _expire(tx: Tx) -> tuple[int, int]:
    requeued = failed = 0
    for row in tx.tasks(
        f"state = 'running' AND expires_at <= ? ORDER BY expires_at LIMIT {BATCH}", tx.now
    ):
        after = tx.apply(row, t.Expire(), silent=row.worker).row
        if after.state in FINISHED:
            failed += 1
            tx.run(
                "UPDATE task_body SET error = json_object('code', ?, 'message', ?, 'detail', NULL)"
                " WHERE seq = ?",
                "timed-out" if after.reason == "timed out" else "lease-expired",
                f"{after.reason}: worker {row.worker}, attempt {row.attempt}",
                row.seq,
            )
            ripple(tx, after)
        else:
            requeued += 1
    return requeued, failed


# When a worker counts as lost: it is not blamed for what nobody could hear.
_LOST_AT = "max(seen_until, ?1 + seen_until - seen_at)"


def _lose_workers(tx: Tx, reachable_since: float) -> int:
    silent = tx.all(
        f"SELECT name FROM worker WHERE lost = 0 AND {_LOST_AT} <= ?2", reachable_since, tx.now
    )
    for (name,) in silent:
        tx.run("UPDATE worker SET lost = 1 WHERE name = ?", name)
        tx.plain_event("worker.lost", name)
    return len(silent)


def _trim_events(tx: Tx, keep: Keep) -> int:
    first, last = ends_of(tx.connection)
    through = 0 if keep.event_count is None else last - keep.event_count
    if keep.event_age_s is not None:
        through = max(through, _last_before(tx, first, tx.now - keep.event_age_s))
    # The newest event always stays: the next one is numbered after it.
    through = min(through, last - 1, first + _EVENTS_AT_ONCE - 1)
    return tx.run("DELETE FROM event WHERE seq <= ?", through) if through >= first else 0


def _last_before(tx: Tx, first: int, moment: float) -> int:
    """The last of the first few events that are older; they lie in the order of their time."""
    oldest = tx.one("SELECT at FROM event WHERE seq = ?", first)
    if oldest is None or oldest[0] >= moment:
        return 0
    return tx.one(
        "SELECT max(seq) FROM (SELECT seq, at FROM event ORDER BY seq LIMIT ?) WHERE at < ?",
        _EVENTS_AT_ONCE,
        moment,
    )[0]


def _trim_tasks(tx: Tx, keep: Keep) -> int:
    """Finished tasks for which no unfinished one has a use, oldest first."""
    dropped = 0
    if keep.task_age_s is not None:
        dropped += _drop_finished(tx, tx.now - keep.task_age_s, BATCH)
    if keep.task_count is not None:
        finished = tx.one("SELECT count(*) FROM task WHERE finished_at IS NOT NULL")[0]
        surplus = min(finished - keep.task_count, BATCH)
        if surplus > 0:
            dropped += _drop_finished(tx, tx.now + 1, surplus)
    return dropped


def _drop_finished(tx: Tx, before: float, limit: int) -> int:
    rows = tx.tasks(
        "finished_at < ? AND NOT EXISTS (SELECT 1 FROM edge"
        "  JOIN task AS low ON low.seq = edge.dependent"
        "  WHERE edge.upstream = task.seq AND low.finished_at IS NULL)"
        " ORDER BY finished_at LIMIT ?",
        before,
        limit,
    )
    for row in rows:
        tx.event("task.dropped", row._replace(reason="past its retention"))
        _fold_edges(tx, row.seq)
        drop_task(tx, row.seq)
    return len(rows)


def _fold_edges(tx: Tx, seq: int) -> None:
    """Let the gates behind a task go on without it as if it still stood there."""
    for dependent, number, state in tx.all(
        "SELECT dependent, gate, state FROM edge WHERE upstream = ?", seq
    ):
        met = state == "met"
        tx.run(
            "UPDATE gate SET total = total - 1, met = met - ?1, missed = missed - ?2,"
            " need = max(0, need - ?1) WHERE task = ?3 AND number = ?4",
            met,
            not met,
            dependent,
            number,
        )
    tx.run("DELETE FROM edge WHERE upstream = ?", seq)


def _next(tx: Tx, reachable_since: float) -> float | None:
    moments = [
        tx.one("SELECT min(expires_at) FROM task WHERE state = 'running'")[0],
        tx.one(
            "SELECT min(not_before) FROM task WHERE state = 'blocked' AND not_before IS NOT NULL"
        )[0],
        tx.one(f"SELECT min({_LOST_AT}) FROM worker WHERE lost = 0", reachable_since)[0],
    ]
    return min((moment for moment in moments if moment is not None), default=None)
