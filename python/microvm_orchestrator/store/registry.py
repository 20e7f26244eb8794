"""Records and workers are written: small documents, and who says to be there."""

from __future__ import annotations

import json

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import Record
from microvm_orchestrator.store.base import Tell, WorkerCard
from microvm_orchestrator.store.rows import Tx, compact


def save(tx: Tx, record: Record, expect: int | None, tell: Tell | None) -> Record:
    """Raises: AlreadyExists, VersionMoved."""
    found = tx.one(
        "SELECT version, created_at FROM record WHERE kind = ? AND id = ?", record.kind, record.id
    )
    version, created_at = found or (0, tx.now)
    if expect is not None and expect != version:
        if expect == 0:
            raise errors.AlreadyExists(f"{record.kind} {record.id} already exists")
        raise errors.VersionMoved(
            f"{record.kind} {record.id} is at version {version}, not {expect}",
            hint="read it again and decide anew",
        )
    written = Record(record.kind, record.id, record.body, version + 1, created_at, tx.now)
    tx.run(
        "INSERT OR REPLACE INTO record (kind, id, body, version, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        written.kind,
        written.id,
        compact(written.body),
        written.version,
        written.created_at,
        written.updated_at,
    )
    if tell is not None or record.kind not in BOOKKEEPING:
        _tell(tx, record, tell or Tell("created" if version == 0 else "updated"))
    return written


def erase(tx: Tx, kind: str, id_: str) -> bool:
    found = tx.one("SELECT body FROM record WHERE kind = ? AND id = ?", kind, id_)
    if found is None:
        return False
    tx.run("DELETE FROM record WHERE kind = ? AND id = ?", kind, id_)
    if kind not in BOOKKEEPING:
        _tell(tx, Record(kind, id_, json.loads(found[0])), Tell("deleted"))
    return True


# Kinds that are the daemon's own bookkeeping: no event, no audit row for each of their changes.
BOOKKEEPING = frozenset({"delivery", "delivery-cursor", "mcp-task", "template-name", "token-use"})


def _tell(tx: Tx, record: Record, tell: Tell) -> None:
    kind, owner = f"{record.kind}.{tell.what}", record.body.get("owner")
    if isinstance(owner, str):
        # Whoever owns it sees what becomes of it, whoever did that: mostly it is nobody.
        tx.owned_event(owner, kind, record.id, **tell.body)
    else:
        tx.plain_event(kind, record.id, **tell.body)
    if tell.audited:
        tx.audit(tell.target or record.id)


def enlist(tx: Tx, card: WorkerCard, ttl_s: float) -> None:
    """Raises: AlreadyExists when another principal holds the name."""
    found = tx.one(
        "SELECT principal, lost, capabilities, roles, labels FROM worker WHERE name = ?", card.name
    )
    if found is not None and found[0] != tx.by.name and tx.by.role is not Role.ADMIN:
        raise errors.AlreadyExists(f"worker {card.name} is registered by {found[0]}")
    declared = (
        compact(sorted(set(card.capabilities))),
        compact(sorted(set(card.roles))),
        compact(card.labels),
    )
    tx.run(
        "INSERT INTO worker (name, principal, capabilities, roles, labels, draining,"
        " registered_at, seen_at, seen_until, lost) VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?6, ?7, 0)"
        " ON CONFLICT (name) DO UPDATE SET principal = ?2, capabilities = ?3, roles = ?4,"
        " labels = ?5, seen_at = ?6, seen_until = ?7, lost = 0",
        card.name,
        tx.by.name,
        *declared,
        tx.now,
        tx.now + ttl_s,
    )
    if found is None or found[1] or found[2:] != declared:
        capabilities, roles, _ = declared
        tx.plain_event(
            "worker.registered",
            card.name,
            capabilities=json.loads(capabilities),
            roles=json.loads(roles),
        )
        tx.audit(card.name)


def drain(tx: Tx, worker: str, *, draining: bool) -> None:
    """Raises: NotFound."""
    changed = tx.run("UPDATE worker SET draining = ? WHERE name = ?", draining, worker)
    if not changed:
        raise _no_worker(worker)
    tx.plain_event("worker.draining" if draining else "worker.accepting", worker)
    tx.audit(worker)


def dismiss(tx: Tx, worker: str) -> None:
    """Raises: NotFound."""
    if not tx.run("DELETE FROM worker WHERE name = ?", worker):
        raise _no_worker(worker)
    tx.plain_event("worker.removed", worker)
    tx.audit(worker)


def _no_worker(worker: str) -> errors.NotFound:
    return errors.NotFound(f"no worker {worker}", hint="worker_list shows who is registered")
