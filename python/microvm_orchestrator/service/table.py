"""The table of calls, in the order the reference pages show it."""

from __future__ import annotations

from microvm_orchestrator.service import (
    caches,
    doctor,
    execs,
    files,
    forwards,
    groups,
    images,
    journal,
    machines,
    networks,
    operations,
    pools,
    seeded,
    server,
    slots,
    snapshots,
    tasks,
    templates,
    tokens,
    webhooks,
    work,
    workers,
)
from microvm_orchestrator.service.calls import Call

CALLS: tuple[Call, ...] = (
    *tasks.CALLS,
    *work.CALLS,
    *groups.CALLS,
    *templates.CALLS,
    *workers.CALLS,
    *machines.CALLS,
    *execs.CALLS,
    *seeded.CALLS,
    *files.CALLS,
    *snapshots.CALLS,
    *forwards.CALLS,
    *networks.CALLS,
    *images.CALLS,
    *pools.CALLS,
    *slots.CALLS,
    *caches.CALLS,
    *operations.CALLS,
    *journal.CALLS,
    *webhooks.CALLS,
    *tokens.CALLS,
    *server.CALLS,
    *doctor.CALLS,
)
BY_NAME: dict[str, Call] = {call.name: call for call in CALLS}
