"""A flake that is evaluated for real, where the sources that it takes are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nix.evaluation import Flake


@pytest.fixture(scope="session")
def nix_sources() -> Path:
    """Name the folder of repositories that evaluation needs, or skip."""
    if "NIX_SOURCES" not in os.environ:
        pytest.skip("NIX_SOURCES does not say where the sources of nixpkgs.lib and others are")
    return Path(os.environ["NIX_SOURCES"])


@pytest.fixture(scope="session")
def flake(nix_sources: Path) -> Flake:
    """Evaluate the flake of this repository."""
    return Flake(nix_sources)
