"""The entry of the command line: the bridge first, everything else through the full program."""

from __future__ import annotations

import sys

from microvm_orchestrator.loading import loading


def main() -> int:
    """Be the command that the words of the shell name."""
    try:
        return _main()
    except KeyboardInterrupt:  # before the command itself could say what that means
        return 130


def _main() -> int:
    if sys.argv[1:2] == ["connect"]:
        # Before anything heavy: an agent starts the bridge with every session.
        from microvm_orchestrator.cli import connect

        status = connect.main(sys.argv[2:])
        if status is not None:
            return status
    with loading():
        from microvm_orchestrator.cli import program

    return program.run(sys.argv[1:])
