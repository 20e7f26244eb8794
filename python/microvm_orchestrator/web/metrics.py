"""What the daemon counts, in the format Prometheus reads.

Every request is counted where all front ends pass; figures of the store are asked for when
somebody looks. Above sit app.py and the daemon. A meter lives as long as the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from microvm_orchestrator import __version__

if TYPE_CHECKING:
    from microvm_orchestrator.model.report import Measures

CONTENT_TYPE = CONTENT_TYPE_LATEST

# From a read of one row to a wait; a bucket per factor of three or so.
_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Meter:
    """Counts requests in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        Info("microvm_orchestrator_build", "What is running", registry=self.registry).info(
            {"version": __version__}
        )
        self._requests = Counter(
            "microvm_orchestrator_requests",
            "Answered calls",
            ["call", "via", "outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "microvm_orchestrator_request_seconds",
            "Time to answer a call, waits included",
            ["call"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )

    def observe(self, call: str, via: str, outcome: str, seconds: float) -> None:
        """Count one call; `outcome` is `ok` or the code of the error."""
        self._requests.labels(call, via, outcome).inc()
        self._seconds.labels(call).observe(seconds)

    def text(self, now: Measures | None) -> bytes:
        """Write it all down; without `now`, only what was counted here."""
        counted = generate_latest(self.registry)
        return counted if now is None else counted + generate_latest(_standing(now))


def _standing(now: Measures) -> CollectorRegistry:
    registry = CollectorRegistry()
    tasks = Gauge("microvm_orchestrator_tasks", "Tasks by state", ["state"], registry=registry)
    for state, count in now.tasks.model_dump().items():
        tasks.labels(state).set(count)
    Gauge(
        "microvm_orchestrator_oldest_ready_seconds",
        "How long the longest waiting ready task has waited",
        registry=registry,
    ).set(now.oldest_ready_s or 0.0)
    Gauge("microvm_orchestrator_workers", "Known workers", registry=registry).set(len(now.workers))
    return registry
