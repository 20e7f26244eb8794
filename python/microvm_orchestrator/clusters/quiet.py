"""Guests whose disks are held for a moment: what they have in memory is written, and no more comes.

A script in each guest writes down what there is and freezes the file systems that can be. They are
let go again when it is told, when nobody is there any more to tell it, and after a minute of the
guest's: one that was not asked for it must not stay frozen. Above are the snapshots of clusters.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.each import Outcome
from microvm_orchestrator.machine.shell import Channel, Command
from microvm_orchestrator.model.cluster import Quiesced
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from microvm_orchestrator.machine.shell import Output, Shell

# What a guest may take to write down what it has: a full cache on a slow disk.
_QUIET_S = 60.0
# For how long a guest stays frozen at most, by its own clock, which stands still while it does.
_FROZEN_S = 60
# From telling a guest to go on until it says that it does.
_LET_GO_S = 15.0
_MOST_CHARS = 64

# Names of places have their spaces as \040, so words are words. What is asked to end thaws first.
# The last that was mounted is frozen first: others may lie below it.
_HOLD = rf"""
waiter= stopped=
trap 'stopped=yes; [ -z "$waiter" ] || kill "$waiter"' TERM HUP INT PIPE
sync || exit 1
seen=' ' places=
while read -r device place kind options rest; do
    case $kind in ext[234] | xfs | btrfs | f2fs) ;; *) continue ;; esac
    case ,$options, in *,ro,*) continue ;; esac
    case $seen in *" $device "*) continue ;; esac
    seen="$seen$device "
    places="$place $places"
done </proc/self/mounts
frozen=
thaw() {{
    for place in $frozen; do fsfreeze --unfreeze "$(printf %b "$place")"; done
    frozen=
}}
for place in $places; do
    if fsfreeze --freeze "$(printf %b "$place")" 2>/dev/null; then
        frozen="$place $frozen"
    else
        thaw
        break
    fi
done
if [ -z "$frozen" ]; then
    echo synced
    exit
fi
# Who waits is there before anybody hears of it: there is always somebody whom a signal ends.
exec 3<&0
timeout {_FROZEN_S} cat <&3 >/dev/null &
waiter=$!
[ -z "$stopped" ] || kill "$waiter"
echo frozen
end=late
wait "$waiter" && end=thawed
thaw
echo $end
"""
# File systems are held by root alone. An emulated guest takes longer to start a program than for
# all the rest: whose / is tells a shell who it is, mostly, and the same shell goes on.
_AS_ROOT = """
[ -O / ] || if [ "$(id -u)" != 0 ] && sudo -n true 2>/dev/null; then exec sudo -n sh -c "$0"; fi
"""
_COMMAND = Command(["sh", "-c", f'{_AS_ROOT}eval "$0"', _HOLD])


class _Held:
    """One guest."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self.how: Quiesced | None = None
        self.error: errors.OrchestratorError | None = None
        self.quiet = anyio.Event()
        self.let_go = anyio.Event()
        self.over = anyio.Event()

    async def hold(self) -> None:
        try:
            async with self._shell.stream(_COMMAND) as process:
                said = aiter(process)
                self.how = Quiesced(await _word(said, "synced", "frozen"))
                self.quiet.set()
                if self.how is Quiesced.FROZEN:
                    await self.let_go.wait()
                    await process.end_input()
                    await _word(said, "thawed")
        except errors.OrchestratorError as error:
            self.error = error
        finally:
            self.quiet.set()
            self.over.set()


@asynccontextmanager
async def held_quiet(shells: Mapping[str, Shell]) -> AsyncGenerator[dict[str, Quiesced]]:
    """Hold the disks of guests as they are for as long as the block; tells how each is held.

    Raises: NodesFailed, also at the end for one that did not stay so.
    """
    guests = {name: _Held(shell) for name, shell in shells.items()}
    async with beside(*(guest.hold for guest in guests.values())):
        try:
            with anyio.move_on_after(_QUIET_S):
                for guest in guests.values():
                    await guest.quiet.wait()
            _refuse_failed(guests, "cannot write down what they have in memory")
            yield {name: guest.how for name, guest in guests.items() if guest.how is not None}
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LET_GO_S):
                for guest in guests.values():
                    guest.let_go.set()
                for guest in guests.values():
                    await guest.over.wait()
        _refuse_failed(guests, "wrote to their disks while these were saved")


def _refuse_failed(guests: Mapping[str, _Held], what: str) -> None:
    failed = Outcome[None]()
    for name, guest in guests.items():
        if guest.error is not None:
            failed.failed[name] = guest.error
        elif guest.how is None:
            late = f"it has not answered within {_QUIET_S:g} s"
            failed.failed[name] = errors.MachineUnreachable(late)
    if failed.failed:
        raise errors.NodesFailed(f"nodes {what}: {failed.told()}")


async def _word(said: AsyncIterator[Output], *expected: str) -> str:
    """Read the next word of a guest. Raises: GuestRefused for another."""
    word = b""
    async for piece in said:
        if piece.channel is Channel.STDOUT:
            word += piece.data
        if b"\n" in word or len(word) > _MOST_CHARS:
            break
    text = word[:_MOST_CHARS].decode("ascii", "replace").strip()
    if text not in expected:
        raise errors.GuestRefused(f"it says {text!r} where {' or '.join(expected)} was expected")
    return text
