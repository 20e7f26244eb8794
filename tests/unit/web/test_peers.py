from __future__ import annotations

import os
import socket

import pytest

from microvm_orchestrator.config import Access
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.service.identity import Peer, peer_of, principal_of

ACCESS = Access(
    uid_roles={7001: Role.WORKER, 7002: Role.VIEWER},
    gid_roles={8001: Role.VIEWER, 8002: Role.OPERATOR},
    default_role=Role.VIEWER,
)


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        peer = peer_of(one)
    assert peer is not None
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    assert peer.gids == {os.getgid(), *os.getgroups()}


@pytest.mark.parametrize(
    ("uid", "gids", "role"),
    [
        (0, set[int](), Role.ADMIN),
        (os.geteuid(), {8001}, Role.ADMIN),
        (7001, set[int](), Role.WORKER),
        (7002, {8002}, Role.VIEWER),
        (7003, {8001}, Role.VIEWER),
        (7003, {8001, 8002}, Role.OPERATOR),
        (7003, {8003}, Role.VIEWER),
    ],
)
def test_a_peer_has_the_role_of_its_user_else_of_its_groups(
    uid: int, gids: set[int], role: Role
) -> None:
    principal = principal_of(Peer(1, uid, frozenset(gids)), ACCESS)
    assert (principal.name, principal.role) == (f"uid:{uid}", role)


def test_of_several_groups_the_highest_role_counts_and_else_the_default() -> None:
    access = Access(gid_roles={1: Role.WORKER, 2: Role.VIEWER}, default_role=Role.OPERATOR)
    assert principal_of(Peer(1, 9, frozenset({1, 2})), access).role is Role.WORKER
    assert principal_of(Peer(1, 9, frozenset({3})), access).role is Role.OPERATOR
