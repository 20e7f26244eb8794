"""Who is at the other end of a unix socket, as the kernel says, and what role that gives.

Above sit the listener, which asks once per connection, and the front ends; below, the access
settings. Nothing here trusts a word of the client.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microvm_orchestrator.model.access import Principal, Role

if TYPE_CHECKING:
    from microvm_orchestrator.config import Access

_CREDENTIALS = struct.Struct("3i")
# Of Linux since 4.13, in <asm-generic/socket.h>; Python has no name for it.
_SO_PEERGROUPS = 59
# NGROUPS_MAX of the kernel; the option fails when the buffer is too small.
_MAX_GROUPS = 65_536


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected: its user, and every group it was in at that moment."""

    pid: int
    uid: int
    gids: frozenset[int]


def peer_of(connection: socket.socket) -> Peer | None:
    """Ask the kernel who connected; over a network nobody can say."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, uid, gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return Peer(pid, uid, frozenset({gid, *_groups(connection)}))


def _groups(connection: socket.socket) -> tuple[int, ...]:
    # The groups of the process itself: no look-up in the user database, which may be a network
    # away, and no other answer than the one file permissions go by.
    for room in (64, _MAX_GROUPS):
        try:
            data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, room * 4)
        except OSError:
            continue
        return struct.unpack(f"{len(data) // 4}I", data)
    return ()


def principal_of(peer: Peer, access: Access) -> Principal:
    """Give a peer its role: its own, else the highest of its groups, else the default."""
    return Principal(name=f"uid:{peer.uid}", role=_role(peer, access))


def _role(peer: Peer, access: Access) -> Role:
    # Both can read and write the store's file; a lower role would only look like a limit.
    if peer.uid in {0, os.geteuid()}:
        return Role.ADMIN
    if peer.uid in access.uid_roles:
        return access.uid_roles[peer.uid]
    ranks = list(Role)
    roles = [role for gid, role in access.gid_roles.items() if gid in peer.gids]
    return max(roles, key=ranks.index, default=access.default_role)
