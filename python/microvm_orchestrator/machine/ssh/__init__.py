"""The way into machines that do not run our agent: foreign images, the nodes of clusters.

`open_ssh` meets the guest's own SSH server and gives the `Shell`. Below it `link` owns the
connection, `line` one channel on it, `carrier` the stream that carries both; `script` writes what
the login shell of the guest reads, and `jobs`, `files`, `trees` and `tunnels` say what the verbs
mean. `keys` makes who we are and whom we must meet, `known` remembers it for a foreign image. All
else lives as long as the connection.

What needs something of ours in the guest is not offered: commands that outlive a connection, new
identities, reports. `Guest.verbs` tells.
"""

from __future__ import annotations

from microvm_orchestrator.machine.ssh.connection import Login, open_ssh
from microvm_orchestrator.machine.ssh.keys import (
    KeyPair,
    MachineKeys,
    fingerprint,
    keep_keys,
    read_line,
)
from microvm_orchestrator.machine.ssh.known import (
    login_of,
    our_key,
    our_key_path,
    remember_host_key,
)

__all__ = [
    "KeyPair",
    "Login",
    "MachineKeys",
    "fingerprint",
    "keep_keys",
    "login_of",
    "open_ssh",
    "our_key",
    "our_key_path",
    "read_line",
    "remember_host_key",
]
