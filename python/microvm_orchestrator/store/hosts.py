"""Hosts of a fleet: who is there, who owns what, what is set aside, what must happen once.

The verbs of `FleetStore` on tables of SQLite. A host's epoch counts its daemons; whatever an
earlier one still says is refused. A single host is a fleet of one.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from microvm_orchestrator import errors
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.model.task import TaskState
from microvm_orchestrator.store.base import Address
from microvm_orchestrator.store.fleet import (
    Command,
    Effect,
    Gang,
    HostRecord,
    Member,
    Owner,
    Reservation,
)
from microvm_orchestrator.store.rows import Tx, compact

T = TypeVar("T")


class SqliteHosts(ABC):
    """The part of the embedded engine that speaks of hosts; the rest gives it its lanes."""

    @abstractmethod
    async def _write(self, by: Actor, verb: Callable[[Tx], T]) -> T:
        """What the verb returns, once its changes are on disk."""

    @abstractmethod
    async def _read(self, by: Actor, read: Callable[[Tx], T], *, slow: bool = False) -> T: ...

    async def announce(self, host: HostRecord, ttl_s: float, *, fresh: bool) -> int:
        return await self._write(SYSTEM, lambda tx: _announce(tx, host, ttl_s, fresh=fresh))

    async def hosts(self) -> list[HostRecord]:
        return await self._read(SYSTEM, _hosts)

    async def reserve(self, gang: Gang) -> Reservation | None:
        return await self._write(SYSTEM, lambda tx: _reserve(tx, gang))

    async def unreserve(self, gang: str) -> None:
        await self._write(SYSTEM, lambda tx: _unreserve(tx, gang))

    async def own(self, kind: str, id: str, host: str, epoch: int) -> bool:
        return await self._write(SYSTEM, lambda tx: _own(tx, kind, id, host, epoch))

    async def disown(self, kind: str, id: str, host: str, epoch: int) -> bool:
        return await self._write(SYSTEM, lambda tx: _disown(tx, kind, id, host, epoch))

    async def locate(self, kind: str, id: str) -> Owner | None:
        return await self._read(SYSTEM, lambda tx: _locate(tx, kind, id))

    async def send(self, host: str, command: Command) -> None:
        await self._write(SYSTEM, lambda tx: _send(tx, host, command))

    async def inbox(self, host: str, after: int, limit: int = 100) -> list[Command]:
        return await self._read(SYSTEM, lambda tx: _inbox(tx, host, after, limit))

    async def acknowledge(self, host: str, through: int) -> None:
        await self._write(SYSTEM, lambda tx: _acknowledge(tx, host, through))

    async def effect(self, task_id: str, token: int, key: str, intent: str) -> Effect:
        return await self._write(SYSTEM, lambda tx: _effect(tx, task_id, token, key, intent))

    async def effect_done(self, key: str, token: int, result: str) -> bool:
        return await self._write(SYSTEM, lambda tx: _effect_done(tx, key, token, result))

    async def holds(self, host: str, add: Sequence[str], drop: Sequence[str]) -> None:
        await self._write(SYSTEM, lambda tx: _holds(tx, host, add, drop))

    async def holders(self, digests: Sequence[str]) -> dict[str, list[str]]:
        return await self._read(SYSTEM, lambda tx: _holders(tx, digests))


# Who is there


def _announce(tx: Tx, host: HostRecord, ttl_s: float, *, fresh: bool) -> int:
    found = tx.one("SELECT epoch FROM host WHERE id = ?", host.id)
    # A daemon that goes on where the store knows nothing of it is as good as a new one.
    epoch = 1 if found is None else found[0] + fresh
    tx.run(
        "INSERT OR REPLACE INTO host (id, epoch, address, capacity, free, draining, seen_until)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        host.id,
        epoch,
        host.address,
        compact(host.capacity),
        compact(host.free),
        host.draining,
        tx.now + ttl_s,
    )
    # What it owns by now is no longer in its figure of what is free.
    tx.run("DELETE FROM reservation WHERE host = ? AND until IS NULL", host.id)
    if found is None or fresh:
        tx.plain_event("host.announced", host.id, epoch=epoch, address=host.address)
    return epoch


def _hosts(tx: Tx) -> list[HostRecord]:
    rows = tx.all(
        "SELECT id, address, capacity, free, draining FROM host WHERE seen_until > ? ORDER BY id",
        tx.now,
    )
    return [
        HostRecord(id_, address, json.loads(capacity), json.loads(free), bool(draining))
        for id_, address, capacity, free, draining in rows
    ]


# Places for machines that belong together


def _reserve(tx: Tx, gang: Gang) -> Reservation | None:
    held = _held(tx, gang)
    if held is not None:
        return held
    tx.run("DELETE FROM reservation WHERE gang = ?", gang.id)
    places = _place(gang.members, {host.id: _room(tx, host) for host in _hosts(tx)})
    if places is None:
        return None
    until = tx.now + gang.hold_s
    for member in gang.members:
        tx.run(
            "INSERT INTO reservation (gang, member, host, needs, until) VALUES (?, ?, ?, ?, ?)",
            gang.id,
            member.id,
            places[member.id],
            compact(member.needs),
            until,
        )
    tx.plain_event("gang.reserved", gang.id, places={**places})
    return Reservation(gang.id, places, until)


def _held(tx: Tx, gang: Gang) -> Reservation | None:
    """What the same request got before, if it still stands."""
    rows = tx.all(
        "SELECT member, host, needs, until FROM reservation WHERE gang = ?"
        " AND (until > ? OR until IS NULL)",
        gang.id,
        tx.now,
    )
    if {row[0]: json.loads(row[2]) for row in rows} != {m.id: m.needs for m in gang.members}:
        return None
    waits = [row[3] for row in rows if row[3] is not None]
    return Reservation(gang.id, {row[0]: row[1] for row in rows}, min(waits, default=tx.now))


def _room(tx: Tx, host: HostRecord) -> dict[str, int]:
    """What a host has free that nobody has set aside."""
    room = {} if host.draining else dict(host.free)
    for (needs,) in tx.all(
        "SELECT needs FROM reservation WHERE host = ? AND (until > ? OR until IS NULL)",
        host.id,
        tx.now,
    ):
        for quantity, amount in json.loads(needs).items():
            room[quantity] = room.get(quantity, 0) - amount
    return room


def _place(members: Sequence[Member], rooms: dict[str, dict[str, int]]) -> dict[str, str] | None:
    """A host for each member: the largest first, each on the first host by id where it fits."""
    most = {
        quantity: max(room.get(quantity, 0) for room in rooms.values())
        for room in rooms.values()
        for quantity in room
    }

    def size(member: Member) -> float:
        shares = (amount / max(most.get(of, 0), 1) for of, amount in member.needs.items())
        return max(shares, default=0.0)

    places: dict[str, str] = {}
    for member in sorted(members, key=size, reverse=True):
        for host, room in rooms.items():
            if all(room.get(of, 0) >= amount for of, amount in member.needs.items()):
                places[member.id] = host
                for of, amount in member.needs.items():
                    room[of] -= amount
                break
        else:
            return None
    return places


def _unreserve(tx: Tx, gang: str) -> None:
    if tx.run("DELETE FROM reservation WHERE gang = ?", gang):
        tx.plain_event("gang.released", gang)


# Who owns what


def _is_current(tx: Tx, host: str, epoch: int) -> bool:
    return tx.one("SELECT 1 FROM host WHERE id = ? AND epoch = ?", host, epoch) is not None


def _locate(tx: Tx, kind: str, id_: str) -> Owner | None:
    found = tx.one("SELECT host, epoch FROM owner WHERE kind = ? AND id = ?", kind, id_)
    return None if found is None else Owner(*found)


def _own(tx: Tx, kind: str, id_: str, host: str, epoch: int) -> bool:
    owner = _locate(tx, kind, id_)
    if not _is_current(tx, host, epoch) or (owner is not None and owner.host != host):
        return False
    tx.run(
        "UPDATE reservation SET until = NULL WHERE member = ? AND host = ? AND until > ?",
        id_,
        host,
        tx.now,
    )
    if owner != Owner(host, epoch):
        tx.run(
            "INSERT OR REPLACE INTO owner (kind, id, host, epoch) VALUES (?, ?, ?, ?)",
            kind,
            id_,
            host,
            epoch,
        )
        tx.plain_event(f"{kind}.owned", id_, host=host, epoch=epoch)
    return True


def _disown(tx: Tx, kind: str, id_: str, host: str, epoch: int) -> bool:
    owner = _locate(tx, kind, id_)
    if not _is_current(tx, host, epoch) or owner is None or owner.host != host:
        return False
    tx.run("DELETE FROM owner WHERE kind = ? AND id = ?", kind, id_)
    tx.run("DELETE FROM reservation WHERE member = ? AND host = ?", id_, host)
    tx.plain_event(f"{kind}.disowned", id_, host=host, epoch=epoch)
    return True


# Durable words


def _send(tx: Tx, host: str, command: Command) -> None:
    """Raises: KeyReused."""
    body = compact(command.body)
    found = tx.one("SELECT host, body FROM command WHERE id = ?", command.id)
    if found is None:
        tx.run("INSERT INTO command (host, id, body) VALUES (?, ?, ?)", host, command.id, body)
    elif tuple(found) != (host, body):
        raise errors.KeyReused(f"command {command.id} was sent before with another content")


def _inbox(tx: Tx, host: str, after: int, limit: int) -> list[Command]:
    rows = tx.all(
        "SELECT id, body, seq FROM command WHERE host = ? AND seq > ? AND heard_at IS NULL"
        " ORDER BY seq LIMIT ?",
        host,
        after,
        limit,
    )
    return [Command(id_, json.loads(body), seq) for id_, body, seq in rows]


def _acknowledge(tx: Tx, host: str, through: int) -> None:
    tx.run(
        "UPDATE command SET heard_at = ? WHERE host = ? AND seq <= ? AND heard_at IS NULL",
        tx.now,
        host,
        through,
    )


# What must happen once


def _effect(tx: Tx, task_id: str, token: int, key: str, intent: str) -> Effect:
    """Raises: NotFound for the task, KeyReused when another task has the key."""
    row = tx.need(Address(task_id))
    if row.state is not TaskState.RUNNING or row.attempt != token:
        return Effect("fenced")
    found = tx.one("SELECT task, token, intent, result FROM effect WHERE key = ?", key)
    if found is None:
        tx.run(
            "INSERT INTO effect (key, task, token, intent) VALUES (?, ?, ?, ?)",
            key,
            row.seq,
            token,
            intent,
        )
        tx.event("effect.begun", row, effect=key)
        return Effect("begun")
    task, begun_by, begun_intent, result = found
    if task != row.seq:
        raise errors.KeyReused(f"effect {key} belongs to another task")
    if result is not None:
        return Effect("already", result)
    if (begun_by, begun_intent) != (token, intent):
        tx.run("UPDATE effect SET token = ?, intent = ? WHERE key = ?", token, intent, key)
        tx.event("effect.begun", row, effect=key)
    return Effect("begun")


def _effect_done(tx: Tx, key: str, token: int, result: str) -> bool:
    found = tx.one("SELECT task, token, result FROM effect WHERE key = ?", key)
    if found is None or found[1] != token:
        return False
    task, _, told = found
    if told is None:
        tx.run("UPDATE effect SET result = ? WHERE key = ?", result, key)
        tx.event("effect.done", tx.get(task), effect=key)
        return True
    return told == result


# Who has which bytes


def _holds(tx: Tx, host: str, add: Iterable[str], drop: Iterable[str]) -> None:
    for digest in add:
        tx.run("INSERT OR IGNORE INTO blob_at (digest, host) VALUES (?, ?)", digest, host)
    for digest in drop:
        tx.run("DELETE FROM blob_at WHERE digest = ? AND host = ?", digest, host)


def _holders(tx: Tx, digests: Iterable[str]) -> dict[str, list[str]]:
    """Hosts that are there and have it; a digest nobody has is listed with none."""
    return {
        digest: [
            row[0]
            for row in tx.all(
                "SELECT blob_at.host FROM blob_at JOIN host ON host.id = blob_at.host"
                " WHERE digest = ? AND host.seen_until > ? ORDER BY blob_at.host",
                digest,
                tx.now,
            )
        ]
        for digest in digests
    }
