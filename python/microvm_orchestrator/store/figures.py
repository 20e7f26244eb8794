"""Figures over a stretch of time: waits, runs, throughput, and what each worker did.

Added up by SQLite from the attempts that ended within the window, found by their index; of each
distribution only its few figures come back. What stands where now is one pass over the tasks. The
journal is not read.
"""

from __future__ import annotations

from typing import Any

from microvm_orchestrator.model.report import Measures, Spread, StateCounts, WorkerFigures
from microvm_orchestrator.store.questions import Figures
from microvm_orchestrator.store.rows import Tx
from microvm_orchestrator.store.view import View, view_of

# The busiest ones; a fleet of workers with a name for each task would have no end.
_WORKERS_TOLD = 200


def figures(tx: Tx, question: Figures) -> Measures:
    view = view_of(tx, () if question.group is None else [question.group])
    since = tx.now - question.window_s
    states = {
        state: (count, submitted, first_ready)
        for state, count, submitted, first_ready in tx.all(
            "SELECT state, count(*), sum(created_at >= ?), min(ready_at)"
            f" FROM task WHERE {view.where} GROUP BY state",
            since,
            *view.values,
        )
    }
    ended: dict[str, int] = dict(
        tx.all(
            f"SELECT state, count(*) FROM task WHERE finished_at >= ? AND {view.where}"
            " GROUP BY state",
            since,
            *view.values,
        )
    )
    completed = ended.get("done", 0)
    return Measures(
        window_s=question.window_s,
        tasks=StateCounts(**{state: told[0] for state, told in states.items()}),
        oldest_ready_s=tx.now - states["ready"][2] if "ready" in states else None,
        submitted=sum(told[1] for told in states.values()),
        completed=completed,
        failed=ended.get("failed", 0),
        completed_per_s=completed / question.window_s if question.window_s > 0 else 0.0,
        wait=_waits(tx, view, since),
        run=_runs(tx, view, since),
        workers=_workers(tx, view, since),
    )


# Of the rows that are `told`, numbered by `place` from the shortest of `n`: how many, their mean,
# two percentiles by nearest rank, and the longest.
_SPREAD = (
    "count(*) FILTER (WHERE told), avg(took) FILTER (WHERE told),"
    " max(took) FILTER (WHERE told AND place = (n * 50 + 99) / 100),"
    " max(took) FILTER (WHERE told AND place = (n * 95 + 99) / 100),"
    " max(took) FILTER (WHERE told)"
)


def _spread(row: tuple[Any, ...]) -> Spread:
    count, mean, p50, p95, longest = row
    if not count:
        return Spread()
    return Spread(count=count, mean_s=mean, p50_s=p50, p95_s=p95, max_s=longest)


def _runs_seen(view: View) -> tuple[str, str]:
    """The attempts at the tasks of a view: where from, and on which condition."""
    if view.whole:
        return "run", "1"
    return "run JOIN task ON task.seq = run.task", view.where


def _waits(tx: Tx, view: View, since: float) -> Spread:
    """How long tasks had waited that were claimed within the window.

    An attempt that began in it has ended in it or runs now; there is an index for either.
    """
    runs, seen = _runs_seen(view)
    row = tx.one(
        "WITH waited AS ("
        f" SELECT run.waited_s AS took FROM {runs}"
        f"  WHERE run.finished_at >= ? AND run.started_at >= ? AND {seen}"
        " UNION ALL SELECT run.waited_s FROM task CROSS JOIN run ON run.task = task.seq"
        "   AND run.attempt = task.attempt"
        f"  WHERE task.state = 'running' AND run.started_at >= ? AND {view.where}),"
        " placed AS (SELECT took, 1 AS told, row_number() OVER (ORDER BY took) AS place,"
        "  count(*) OVER () AS n FROM waited)"
        f" SELECT {_SPREAD} FROM placed",
        since,
        since,
        *view.values,
        since,
        *view.values,
    )
    return _spread(row)


def _runs(tx: Tx, view: View, since: float) -> Spread:
    """How long the attempts took that their workers brought to an end within the window."""
    runs, seen = _runs_seen(view)
    row = tx.one(
        "WITH ended AS (SELECT run.finished_at - run.started_at AS took"
        f" FROM {runs} WHERE run.finished_at >= ? AND run.state IN ('succeeded', 'failed')"
        f" AND {seen}),"
        " placed AS (SELECT took, 1 AS told, row_number() OVER (ORDER BY took) AS place,"
        "  count(*) OVER () AS n FROM ended)"
        f" SELECT {_SPREAD} FROM placed",
        since,
        *view.values,
    )
    return _spread(row)


def _workers(tx: Tx, view: View, since: float) -> list[WorkerFigures]:
    runs, seen = _runs_seen(view)
    rows = tx.all(
        "WITH ended AS (SELECT run.worker, run.state, run.finished_at - run.started_at AS took,"
        "  run.state IN ('succeeded', 'failed') AS told"
        f" FROM {runs} WHERE run.finished_at >= ? AND {seen}),"
        " placed AS (SELECT *, count(*) OVER (PARTITION BY worker, told) AS n,"
        "  row_number() OVER (PARTITION BY worker, told ORDER BY took) AS place FROM ended)"
        " SELECT worker, sum(state = 'succeeded'), sum(state = 'failed'), sum(state = 'lost'),"
        f" sum(state = 'timed_out'), {_SPREAD} FROM placed"
        " GROUP BY worker ORDER BY count(*) DESC, worker LIMIT ?",
        since,
        *view.values,
        _WORKERS_TOLD,
    )
    return [_worker(*row[:5], run=_spread(row[5:])) for row in rows]


def _worker(
    worker: str, succeeded: int, failed: int, lost: int, timed_out: int, *, run: Spread
) -> WorkerFigures:
    ended = succeeded + failed + lost + timed_out
    return WorkerFigures(
        worker=worker,
        succeeded=succeeded,
        failed=failed,
        lost=lost,
        timed_out=timed_out,
        success_rate=succeeded / ended if ended else 0.0,
        run=run,
    )
