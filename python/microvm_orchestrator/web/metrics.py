"""What the daemon counts, in the format Prometheus reads.

Every request is counted where all front ends pass; figures of the store are asked for when
somebody looks. Above sit app.py and the daemon. A meter lives as long as the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from microvm_orchestrator import __version__
from microvm_orchestrator.model.agent import AgentState

if TYPE_CHECKING:
    from microvm_orchestrator.model.agent_health import AgentTotals
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

    def text(self, now: Measures | None, agents: AgentTotals | None = None) -> bytes:
        """Write it all down; of what is not given, only what was counted here."""
        text = generate_latest(self.registry)
        if now is not None:
            text += generate_latest(_standing(now))
        if agents is not None:
            text += generate_latest(_agents(agents))
        return text


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


def _agents(totals: AgentTotals) -> CollectorRegistry:
    """Agents as a whole: how many there are is for their owners to choose, and so no label."""
    registry = CollectorRegistry()
    agents = Gauge("microvm_orchestrator_agents", "Agents by state", ["state"], registry=registry)
    for state in AgentState:
        agents.labels(state).set(totals.states.get(state, 0))
    outcomes = Gauge(
        "microvm_orchestrator_agent_messages",
        "What became of messages to agents that live or ended since the daemon came up",
        ["outcome"],
        registry=registry,
    )
    for outcome in ("answered", "failed", "interrupted"):
        outcomes.labels(outcome).set(getattr(totals, outcome))
    for name, what in (
        ("tokens", "Tokens of model APIs that known agents have taken"),
        ("cost_usd", "Cost of model APIs that known agents have taken, at list prices"),
        ("turns", "Messages that known agents have heard"),
        ("wall_s", "Seconds that turns of known agents took"),
    ):
        gauge = Gauge(f"microvm_orchestrator_agent_{name}", what, registry=registry)
        gauge.set(getattr(totals.taken, name))
    return registry
