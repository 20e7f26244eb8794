"""Names in guests: the nodes of a cluster know each other by name, from their /etc/hosts.

It is written when a node has come up, behind what its image says. Each line bears the cluster's
mark, by which those of an earlier start are found; nothing else in the file is touched, and what it
said of a name before still counts. A guest that goes by another name than its node, or whose file
is a link, as where something else makes it, is left as it is. Above is the life of clusters; below,
the shells of guests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine.shell import Command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm_orchestrator.machine.shell import Shell

# A guest that answers writes a short file at once.
_WRITE_S = 10.0
# What every guest calls itself, whatever a topology says.
_OWN = frozenset({"localhost"})
# Who logs in need not be root. The file is whole at any time. The variable is for guests that are
# none, which must not change the host that they run on.
_WRITE = """
hosts=${MICROVM_ORCHESTRATOR_HOSTS:-/etc/hosts} node=$1 mark=$2 lines=$3 root=
[ "$(cat /proc/sys/kernel/hostname)" = "$node" ] || exit 0
[ -f "$hosts" ] && [ ! -L "$hosts" ] || exit 0
[ "$(id -u)" = 0 ] || root='sudo -n'
new=$(grep -v " $mark\\$" "$hosts"; printf %s "$lines")
[ "$new" != "$(cat "$hosts")" ] || exit 0
$root cp -p "$hosts" "$hosts.new" || exit
printf '%s\\n' "$new" | $root tee "$hosts.new" >/dev/null || exit
$root mv "$hosts.new" "$hosts"
"""


def lines_for(name: str, places: Mapping[str, Mapping[str, list[str]]], mark: str) -> list[str]:
    """Say which addresses nodes have where one of them meets them; its own are among them.

    Of several networks that two have in common the first is meant.
    """
    own = places[name]
    lines: list[str] = []
    for other, theirs in places.items():
        shared = next((network for network in own if network in theirs), None)
        if shared is not None and other not in _OWN:
            lines += [f"{address} {other} {mark}" for address in theirs[shared]]
    return lines


def mark_of(cluster: str) -> str:
    return f"# of cluster {cluster}"


async def write(
    shell: Shell, name: str, places: Mapping[str, Mapping[str, list[str]]], cluster: str
) -> None:
    """Tell a node's guest who is called what. Raises: MachineFailed, GuestRefused."""
    mark = mark_of(cluster)
    lines = "\n".join(lines_for(name, places, mark))
    command = Command(["/bin/sh", "-c", _WRITE, "names", name, mark, lines], timeout_s=_WRITE_S)
    try:
        with anyio.fail_after(2 * _WRITE_S):
            ran = await shell.exec(command, output_cap=1000)
    except TimeoutError:
        raise errors.MachineUnreachable("its guest did not say that it knows the others") from None
    if ran.exit.code != 0:
        said = ran.stderr.decode(errors="replace").strip() or f"it ended with {ran.exit.code}"
        raise errors.GuestRefused(f"its /etc/hosts was not written: {said}")
