"""What Nix has rendered of the service, for hosts of tests that are none of NixOS.

What such a host gets, and what NixOS would do with it, is the same wherever it lies. Above are
`contained` and `debian`.
"""

from __future__ import annotations

import re

from nix.evaluation import ROOT

RENDERED = ROOT / "tests/nix/rendered"
SERVICE = "microvm-orchestrator.service"
# What NixOS does with units that have changed and want to be restarted, not stopped and started.
SWITCH = """#!/bin/sh
set -e
[ "$1" = test ] || exit 64
cp /etc/changed/etc/systemd/system/* /etc/systemd/system
systemctl daemon-reload
cd /etc/changed/etc/systemd/system
systemctl restart *
"""


def units() -> dict[str, str]:
    """Read the units that a host has whose machines are the daemon's, by their names."""
    paths = [
        path for path in RENDERED.iterdir() if path.suffix in {".service", ".socket", ".slice"}
    ]
    return {path.name: path.read_text() for path in paths}


def started(server: str) -> tuple[str, str]:
    """Tell the daemon's program and its settings' file, by the paths that its unit has."""
    [found] = re.findall(r'ExecStart="(\S+)" "serve" "--config" "(\S+)"', server)
    program, settings = found
    return program, settings


def settings() -> str:
    """Read the daemon's settings, by which no machine starts by itself."""
    return (RENDERED / "config.toml").read_text().replace('"embedded" = 2', "")
