"""The bridges that Nix rendered, in a kernel: what leaves them, by which address, and what not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOON_S = 120
V4, V6 = 0, 1
# By who asks whom, by which of their addresses: whom the other one saw, or that nobody came.
# `guest` is on a bridge with egress to the internet and NAT, `lab` on one without egress.
WHO_MEETS_WHOM = {
    ("guest", "sibling", V4): "10.77.0.2",
    ("guest", "sibling", V6): "fd77::2",
    ("guest", "internet", V4): "198.51.100.1",
    ("guest", "internet", V6): "2001:db8:1::1",
    ("guest", "office", V4): None,
    ("guest", "office", V6): None,
    ("guest", "lab", V4): None,
    ("lab", "labmate", V4): "10.78.0.2",
    ("lab", "internet", V4): None,
    ("lab", "office", V4): None,
    ("lab", "guest", V4): None,
    # Both know the way, as whoever routes beside the host does.
    ("internet", "guest", V4): None,
    ("internet", "guest", V6): None,
    ("office", "guest", V4): None,
    ("office", "lab", V4): None,
    # What is no bridge of ours is none of our business.
    ("office", "internet", V4): "192.168.9.2",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes bridges")
@pytest.mark.skipif(
    not all(Path(f"/usr/sbin/{name}").exists() for name in ("ip", "nft")),
    reason="this host has no ip, or no nft",
)
def test_guests_on_bridges_reach_whom_they_may_and_nobody_begins_to_talk_to_them() -> None:
    words = [sys.executable, HERE / "bridged.py", HERE / "rendered"]
    ran = subprocess.run(
        ["unshare", "--net", "--mount", *words, json.dumps(list(WHO_MEETS_WHOM))],
        capture_output=True,
        text=True,
        check=False,
        timeout=SOON_S,
    )
    assert ran.returncode == 0, ran.stderr
    seen = dict(zip(WHO_MEETS_WHOM, json.loads(ran.stdout), strict=True))
    assert seen == WHO_MEETS_WHOM
