"""The channel to our own agent in a guest: one byte stream that carries everything at once.

`open_shell` greets the agent and gives the `Shell`. Below it `link` owns the connection, `stream`
one exchange on it, `outbox` whose turn it is to be sent; `jobs`, `files`, `trees` and `tunnels` say
what a verb of `guest/protocol.md` means. All of it lives as long as the connection.
"""

from __future__ import annotations

from microvm_orchestrator.machine.channel.connection import open_shell

__all__ = ["open_shell"]
