"""Whether a program runs in the development shell of the repository's flake, and how."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.model.run import Devshell

if TYPE_CHECKING:
    from microvm_orchestrator.agents.drivers.base import Invocation

# A guest's own Nix may not have been told to take part in what is still called experimental.
_NIX = ("nix", "--extra-experimental-features", "nix-command flakes", "develop", "--command")


def choose_devshell(policy: Devshell, *, has_flake: bool, has_nix: bool) -> bool:
    """Decide by what the repository and the image have; a flake counts if it has a devShell.

    Raises: DevshellMissing.
    """
    match policy:
        case Devshell.NEVER:
            return False
        case Devshell.AUTO:
            return has_flake and has_nix
        case Devshell.REQUIRE:
            if not has_flake:
                raise errors.DevshellMissing(
                    "the repository has no flake.nix with a devShell, and `devshell` requires one",
                    hint="set `devshell` to auto or never, or add a devShell to the flake",
                )
            if not has_nix:
                raise errors.DevshellMissing(
                    "the image has no Nix, and `devshell` requires it",
                    hint="set `devshell` to auto or never, or choose an image with Nix",
                )
            return True


def wrap(invocation: Invocation, *, devshell: bool) -> Invocation:
    """Start the program in the development shell of the flake of the folder it starts in."""
    if not devshell:
        return invocation
    return dataclasses.replace(invocation, argv=(*_NIX, *invocation.argv))
