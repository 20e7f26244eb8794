"""What befalls a guest from inside: a clock that is wrong, memory and disks that others have.

Memory and disks are held by a process of ours in the guest, which has a file that has no name any
more: when it ends, or the guest does, all of it is free again. It is found by what it wrote into
/run. All of it is a few lines of shell that any Linux can run, whichever way leads into the guest.
What the guest says is hostile: short, parsed strictly, and only compared.
"""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Boot
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.model.fault import Harm
from microvm_orchestrator.model.machine import MachineState

if TYPE_CHECKING:
    from microvm_orchestrator.machine.base import MachineSpec
    from microvm_orchestrator.machine.shell import Shell

# What a process in the guest has, which is saved with it.
HELD_INSIDE = frozenset({"memory_mib", "full"})
# A guest whose way in is there answers in a hundredth of it.
_REACH_S = 10.0
_SCRIPT_S = 30.0
_SAID = 4096
# A clock that was set is wrong by as long as the command took to begin.
_CLOSE_ENOUGH_S = 0.2
_TRIES = 4
_QUICK_S = 0.5
# Until a process has all of its memory, or a disk is full.
_HELD_S = 20.0
_AGAIN_S = 0.1
# Of memory, what a process of its size may lack to be taken for having it.
_MOST_OF_IT = 0.95
_FULL_BYTES = 1 << 20
_OTHERS_KIB = 16 << 10
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SAME_KERNEL = 99

# Nothing here may befall this host, which is where a guest runs that is none.
_GUARD = """\
read -r booted </proc/sys/kernel/random/boot_id
[ "$booted" != "$1" ] || exit 99
shift
"""
# A busybox tells and sets whole seconds by its `date`. It waits for the next one, $3 from now.
_READ_CLOCK = """\
now=$(date -u +%s.%N)
case $now in
*N)
    set -- $(adjtimex | sed -n 's/.*time.tv_sec: *//p; s/.*time.tv_usec: *//p')
    now=$(printf '%d.%06d' "$1" "$2")
    ;;
esac
echo "$now"
"""
_SET_CLOCK = """\
date -u -s "@$1.$2" >/dev/null 2>&1 && exit
sleep "$3" && date -u -s "@$(($1 + 1))" >/dev/null
"""
# $1 names the file; $2 what it holds. A holder leads a group of its own.
_BEGIN = """\
mine=/run/microvm-fault-$1
if [ -e "$mine" ]; then
    read -r pid <"$mine"
    kill -9 -"$pid" 2>/dev/null
    tries=0
    while kill -0 -"$pid" 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || exit 1
        sleep 0.1
    done
    rm -f "$mine"
fi
[ "$2" ] || exit 0
setsid sh -c "$3" "microvm-fault-$1" "$2" </dev/null >/dev/null 2>&1 &
echo "$!" >"$mine.new" && echo "$2" >>"$mine.new" && mv "$mine.new" "$mine"
"""
_TAKE_MEMORY = """\
echo -900 >/proc/self/oom_score_adj
way=/run/microvm-fault-way.$$
mkfifo "$way" && exec 3<>"$way" && rm "$way" && exec dd if=/dev/zero bs="$1"M count=1 >&3
"""
_SEE_MEMORY = """\
[ -e /run/microvm-fault-memory ] || exit 0
{ read -r pid && read -r mib; } </run/microvm-fault-memory
has=$(sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB$/\\1/p' "/proc/$pid/status" 2>/dev/null)
grep -q -e "bs=${mib}M" -e microvm-fault-memory "/proc/$pid/cmdline" 2>/dev/null &&
    echo "$mib ${has:-0}"
"""
_FREE_MEMORY = "sed -n 's/^MemAvailable:[^0-9]*\\([0-9]*\\) kB$/\\1/p' /proc/meminfo"
_FILL = """\
cd "$1" || exit
file=.microvm-fault-full.$$
exec 3>>"$file" && rm -f "$file" || exit
free=$(($(stat -f -c '%a * %S' .)))
for share in 100 99 95 80; do
    fallocate -l $((free / 100 * share)) /proc/self/fd/3 && break
done
while :; do
    dd if=/dev/zero bs=64k >&3
    dd if=/dev/zero bs=512 >&3
    sleep 1
done
"""
_SEE_FULL = """\
for mine in /run/microvm-fault-full-*; do
    [ -e "$mine" ] || continue
    { read -r pid && read -r at; } <"$mine"
    grep -q microvm-fault-full "/proc/$pid/cmdline" 2>/dev/null || continue
    echo "$(($(stat -f -c '%a * %S' "$at"))) $at"
done
"""
# Numbers of the kernel's: tmpfs, ramfs, proc and sysfs; and those which may lie on any of them.
_KIND_OF = 'stat -f -c %t "$1"'
_IN_MEMORY = frozenset({"1021994", "858458f6", "9fa0", "62656572"})
_OVERLAY = "794c7630"
# By which our guests know the disk that all they write goes to.
_SCRATCH = "scratch"
_PATH = re.compile(r"/[^\x00-\x1f\x7f]{0,1000}")


class Guest(Protocol):
    """A machine, as far as its guest can be told something."""

    @property
    def spec(self) -> MachineSpec: ...

    @property
    def state(self) -> MachineState: ...

    async def reached(self) -> Shell: ...


class _Inside:
    """Runs scripts in a guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._name = f"machine {guest.spec.machine_id}"

    async def run(self, script: str, *words: str) -> str:
        """Return what a script says.

        Raises: MachineUnreachable, StateForbids, GuestRefused; FaultNotOffered when the guest has
            no kernel of its own.
        """
        if self._guest.state is MachineState.PAUSED:
            raise errors.MachineUnreachable(f"{self._name} stands still, and is told nothing")
        ours = await anyio.to_thread.run_sync(_BOOT_ID.read_text)
        argv = ["/bin/sh", "-c", _GUARD + script, "sh", ours.strip(), *words]
        try:
            with anyio.fail_after(_REACH_S):
                shell = await self._guest.reached()
            with anyio.fail_after(2 * _SCRIPT_S):
                command = Command(argv, timeout_s=_SCRIPT_S)
                ran = await shell.exec(command, output_cap=_SAID)
        except TimeoutError:
            raise errors.MachineUnreachable(f"the guest of {self._name} does not answer") from None
        if ran.exit.code == _SAME_KERNEL:
            raise errors.FaultNotOffered(f"{self._name} has no kernel of its own to be harmed")
        if ran.exit.code != 0:
            said = ran.stderr.decode("utf-8", "replace").strip()[-200:]
            raise errors.GuestRefused(f"the guest of {self._name} did not do it: {said!r}")
        return ran.stdout.decode("utf-8", "replace")

    def nonsense(self) -> errors.OrchestratorError:
        return errors.ProtocolBroken(f"the guest of {self._name} does not say how it stands")


class Clock(_Inside):
    """The clock, which is ahead or behind."""

    fields = frozenset({"skew_s"})

    async def check(self, harm: Harm) -> None:
        del harm
        await self._skew_s()

    async def make(self, harm: Harm) -> None:
        late_s = 0.0
        for _ in range(_TRIES):
            wanted = time.time() + harm.skew_s + late_s
            seconds, nanos = divmod(int(wanted * 1e9), 10**9)
            rest_s = 1 - nanos / 1e9
            await self.run(_SET_CLOCK, str(seconds), f"{nanos:09}", f"{rest_s:.3f}")
            wrong_s = await self._skew_s() - harm.skew_s
            if abs(wrong_s) <= _CLOSE_ENOUGH_S:
                return
            late_s -= wrong_s

    async def see(self) -> Harm:
        return Harm(skew_s=await self._skew_s())

    async def _skew_s(self) -> float:
        """Ask for the time until the answer comes quickly, and tell how far it is ahead."""
        best = (float("inf"), 0.0)
        for _ in range(_TRIES):
            before, begun = time.time(), time.monotonic()
            said = (await self.run(_READ_CLOCK)).strip()
            took_s = time.monotonic() - begun
            if not re.fullmatch(r"\d{1,12}\.\d{1,9}", said):
                raise self.nonsense()
            best = min(best, (took_s, float(said) - before - took_s / 2))
            if took_s < _QUICK_S:
                break
        return best[1]


class Memory(_Inside):
    """Memory that a process of ours has."""

    fields = frozenset({"memory_mib"})

    async def check(self, harm: Harm) -> None:
        """Raises: InvalidInput when the guest has not so much to give."""
        has_mib, _ = await self._held()
        said = (await self.run(_FREE_MEMORY)).strip()
        if not re.fullmatch(r"\d{1,12}", said):
            raise self.nonsense()
        free_mib = (int(said) - _OTHERS_KIB) // 1024 + has_mib
        if harm.memory_mib > free_mib:
            raise errors.InvalidInput(
                f"the guest of {self._name} has {max(0, free_mib)} MiB that can be taken"
            )

    async def make(self, harm: Harm) -> None:
        if await self._holds(harm.memory_mib):
            return
        wanted = str(harm.memory_mib) if harm.memory_mib else ""
        await self.run(_BEGIN, "memory", wanted, _TAKE_MEMORY)
        with anyio.move_on_after(_HELD_S):
            while not await self._holds(harm.memory_mib):  # noqa: ASYNC110 # no guest tells us
                await anyio.sleep(_AGAIN_S)

    async def see(self) -> Harm:
        mib, has_kib = await self._held()
        return Harm(memory_mib=mib if has_kib >= mib * 1024 * _MOST_OF_IT else has_kib // 1024)

    async def _holds(self, mib: int) -> bool:
        return (await self.see()).memory_mib == mib

    async def _held(self) -> tuple[int, int]:
        """Tell how many MiB a process is to have, and how many KiB it has."""
        said = (await self.run(_SEE_MEMORY + "\n:")).split()
        if not said:
            return 0, 0
        if len(said) != 2 or not all(re.fullmatch(r"\d{1,9}", word) for word in said):
            raise self.nonsense()
        return int(said[0]), int(said[1])


class FullDisk(_Inside):
    """File systems that a process of ours keeps full."""

    fields = frozenset({"full"})

    async def check(self, harm: Harm) -> None:
        """Raises: FaultNotOffered for what the guest has in its memory, GuestRefused."""
        for path in harm.full:
            kind = (await self.run(_KIND_OF, path)).strip()
            if kind in _IN_MEMORY or (kind == _OVERLAY and self._root_in_memory()):
                raise errors.FaultNotOffered(
                    f"what the guest of {self._name} writes to {path} is in its memory",
                    hint="give it a disk (disk_mib), or take its memory",
                )

    async def make(self, harm: Harm) -> None:
        has = await self._held()
        for path in {*has, *harm.full}:
            wanted = path if path in harm.full else ""
            if bool(wanted) != (path in has):
                name = hashlib.sha256(path.encode()).hexdigest()[:16]
                await self.run(_BEGIN, f"full-{name}", wanted, _FILL)
        with anyio.move_on_after(_HELD_S):
            while (await self.see()).full != harm.full:  # noqa: ASYNC110 # no guest tells us
                await anyio.sleep(_AGAIN_S)

    async def see(self) -> Harm:
        held = await self._held()
        return Harm(full=tuple(sorted(path for path, free in held.items() if free < _FULL_BYTES)))

    async def _held(self) -> dict[str, int]:
        """Tell what is kept full, and how many bytes are free there."""
        held: dict[str, int] = {}
        for line in (await self.run(_SEE_FULL + "\n:")).splitlines():
            free, _, path = line.partition(" ")
            if not re.fullmatch(r"\d{1,18}", free) or not _PATH.fullmatch(path):
                raise self.nonsense()
            held[path] = int(free)
        return held

    def _root_in_memory(self) -> bool:
        """Whether it is a guest of ours without a disk for what it writes anywhere."""
        spec = self._guest.spec
        return isinstance(spec.boot, Boot) and all(
            disk.read_only or disk.serial != _SCRATCH for disk in spec.all_disks
        )
