"""Whether KVM is usable here and how fast the TSC counts: measured once a boot of this host.

`probe` is what a hypervisor decides by when a machine asks for `auto`. The measuring itself is a
child process with a deadline (`kvmprobe.py`); its answer is kept in the state directory. Above
stand the hypervisors and `facts.py`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path

from pydantic import BaseModel, ValidationError

from microvm_orchestrator import errors, log, proc
from microvm_orchestrator.machine import kvmprobe
from microvm_orchestrator.machine.base import Accel

KVM = Path("/dev/kvm")
# A native core runs an instruction in less than 1 ns; emulated ones were seen to take 260 and more.
USABLE_NS = 20.0
# A child needs half a second at the most where everything works, and more than two while a slow
# host boots, which would go without KVM from then on. A guest may hang; the TSC cannot, but a host
# can be busy, and without a figure nothing runs under emulation.
_DEADLINE_S = {"kvm": 10.0, "tsc": 30.0}
# In the state directory.
FILE = "acceleration.json"


class Acceleration(BaseModel, frozen=True):
    """What this host can run guests with."""

    kvm: bool
    # A sentence for a person: why, or why not.
    why: str
    # A guest under emulation must be told, or it may wait for ever for a clock to compare with.
    tsc_khz: int | None = None


class _Kept(BaseModel):
    boot_id: str
    acceleration: Acceleration


def boot_id() -> str:
    """Name this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


async def probe(state_dir: Path) -> Acceleration:
    """Return what was measured since the host booted, or measure now."""
    path = state_dir / FILE
    kept = _read(path)
    if kept is None or kept.boot_id != boot_id():
        kept = _Kept(boot_id=boot_id(), acceleration=await measure())
        # What could not be measured, or written to a full disk, is measured again the next time.
        if kept.acceleration.tsc_khz is not None:
            with contextlib.suppress(OSError):
                _write(path, kept)
        log.get(__name__).info("acceleration_measured", **kept.acceleration.model_dump())
    found = kept.acceleration
    # Who may open the device can change at any time, and is asked for nothing.
    if found.kvm and (barred := _barred()):
        return found.model_copy(update={"kvm": False, "why": barred})
    return found


async def measure() -> Acceleration:
    """Measure in child processes. Takes a second, and never longer than the deadline of both."""
    if platform.machine() != "x86_64":
        return Acceleration(kvm=False, why=f"there is no probe for {platform.machine()} yet")
    kvm, why = await _judge_kvm()
    try:
        tsc_khz = int(await _ask_child("tsc"))
    except errors.CommandFailed as error:
        log.get(__name__).warning("tsc_not_measured", error=error.message)
        tsc_khz = None
    return Acceleration(kvm=kvm, why=why, tsc_khz=tsc_khz)


async def _judge_kvm() -> tuple[bool, str]:
    if barred := _barred():
        return False, barred
    try:
        ns = await _ask_child("kvm")
    except errors.CommandFailed as error:
        return False, f"KVM does not run a tiny guest: {error.stderr.strip() or error.message}"
    usable = ns < USABLE_NS
    means = "natively" if usable else "emulated, too slow to use"
    return usable, f"guest code runs at {ns:.2f} ns an instruction: {means}"


async def _ask_child(what: str) -> float:
    argv = (sys.executable, "-I", "-S", kvmprobe.__file__, what)
    return float((await proc.run(argv, timeout_s=_DEADLINE_S[what], grace_s=0)).stdout)


def choose(wanted: Accel, found: Acceleration) -> Accel:
    """Decide what a machine runs with.

    Raises: Unavailable when it insists on KVM and there is none.
    """
    if wanted is Accel.KVM and not found.kvm:
        raise errors.Unavailable(
            f"KVM cannot be used here: {found.why}", hint="ask for accel auto or tcg"
        )
    if wanted is Accel.AUTO:
        return Accel.KVM if found.kvm else Accel.TCG
    return wanted


def _barred() -> str | None:
    if not KVM.exists():
        return f"{KVM} is not there: the kernel has no KVM, or the host's firmware forbids it"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return f"{KVM} cannot be opened by this user: membership of the group kvm is missing"
    return None


def _read(path: Path) -> _Kept | None:
    try:
        return _Kept.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(path: Path, kept: _Kept) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(kept.model_dump_json())
    fresh.replace(path)
