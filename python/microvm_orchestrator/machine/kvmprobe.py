"""Measures how fast guest code runs under KVM here, and how fast the TSC counts. A program.

`probe.py` runs it as a child, because a broken KVM does not come back from the kernel: that the
device opens, that a machine can be created and that a tiny guest exits are all true on hosts that
emulate each instruction of ours. It prints one figure and takes only the standard library.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import sys
import time

_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_CREATE_VCPU = 0xAE41
_SET_TSS_ADDR = 0xAE47
_SET_USER_MEMORY_REGION = 0x4020AE46
_RUN = 0xAE80
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84
_API_VERSION = 12
_EXIT_IO = 2

# Enough that entering and leaving the guest does not count; a native core needs 0.03 ms for it.
_ITERATIONS = 1 << 14
# The fastest counts. The first pays for what happens once: virtualisation is switched on, and where
# that is nested, a hypervisor sees all of it for the first time. Any may be interrupted.
_RUNS = 6
# Fewer say nothing on a busy host: one that runs guests at 2 ns an instruction was judged by its
# first run at 1300, and did without KVM until it was booted again.
_LEAST_RUNS = 3
# Then no more are tried than those: hundreds of times as long as all take a native core.
_ENOUGH_S = 0.1
_MEMORY = 0x200000
_CODE, _PML4, _PDPT, _PD, _STACK = 0x1000, 0x2000, 0x3000, 0x4000, 0x8000

# Long enough that reading both clocks, and being interrupted between, is lost in it.
_TSC_SPAN_S = 0.25
_TSC_TRIES = 2


def _code(iterations: int) -> bytes:
    """Assemble `mov ecx, n; 1: dec ecx; jnz 1b; out 0xf4, al`, a few times, and `hlt`."""
    loop = b"\xb9" + struct.pack("<I", iterations) + b"\xff\xc9\x75\xfc" + b"\xe6\xf4"
    return loop * _RUNS + b"\xf4"


def kvm_ns_per_instruction() -> float:
    """Run a loop in ring 0 of a 64-bit guest. Raises OSError where that does not work at all."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    if fcntl.ioctl(kvm, _GET_API_VERSION, 0) != _API_VERSION:
        raise OSError("the KVM of this kernel speaks another version of its interface")
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    fcntl.ioctl(machine, _SET_TSS_ADDR, 0x7FFBD000)
    memory = mmap.mmap(-1, _MEMORY, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    region = struct.pack("=IIQQQ", 0, 0, 0, _MEMORY, address)
    fcntl.ioctl(machine, _SET_USER_MEMORY_REGION, region)
    # The first 2 MiB, mapped to themselves.
    struct.pack_into("<Q", memory, _PML4, _PDPT | 3)
    struct.pack_into("<Q", memory, _PDPT, _PD | 3)
    struct.pack_into("<Q", memory, _PD, 0x83)
    code = _code(_ITERATIONS)
    memory[_CODE : _CODE + len(code)] = code
    processor = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    shared = mmap.mmap(processor, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    _enter_long_mode(processor)
    took: list[float] = []
    for _ in range(_RUNS):
        begun = time.perf_counter()
        fcntl.ioctl(processor, _RUN, 0)
        took.append(time.perf_counter() - begun)
        why = struct.unpack_from("<I", shared, 8)[0]
        if why != _EXIT_IO:
            raise OSError(f"the guest left with reason {why} instead of its output")
        if len(took) >= _LEAST_RUNS and sum(took) > _ENOUGH_S:
            break
    return min(took) * 1e9 / (2 * _ITERATIONS)


def _enter_long_mode(processor: int) -> None:
    registers = bytearray(312)
    fcntl.ioctl(processor, _GET_SREGS, registers)

    def segment(offset: int, selector: int, kind: int, *, long: int, default: int) -> None:
        fields = (0, 0xFFFFFFFF, selector, kind, 1, 0, default, 1, long, 1, 0, 0, 0)
        struct.pack_into("<QIHBBBBBBBBBB", registers, offset, *fields)

    segment(0, 8, 11, long=1, default=0)
    for offset in range(24, 144, 24):
        segment(offset, 16, 3, long=0, default=1)
    # cr0 (paging, protection), cr2, cr3, cr4 (PAE), cr8, efer (long mode), apic_base
    control = (0x80000011 | 0x20, 0, _PML4, 0x20, 0, 0x500, 0xFEE00900)
    struct.pack_into("<QQQQQQQ", registers, 224, *control)
    fcntl.ioctl(processor, _SET_SREGS, bytes(registers))
    general = (*([0] * 6), _STACK, 0, *([0] * 8), _CODE, 2)
    fcntl.ioctl(processor, _SET_REGS, struct.pack("<18Q", *general))


def tsc_khz() -> int:
    """Compare the TSC with a clock. Raises OSError where no page may be both written and run."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("0f3148c1e2204809d0c3"))  # rdtsc; shl rdx, 32; or rax, rdx; ret
    rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def both() -> tuple[int, int]:
        # The tightest of a few pairs was not interrupted between its two halves.
        pairs: list[tuple[int, int, int]] = []
        for _ in range(16):
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            count = rdtsc()
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            pairs.append((after - before, (before + after) // 2, count))
        _, at, count = min(pairs)
        return at, count

    measured: list[float] = []
    for _ in range(_TSC_TRIES):
        at, count = both()
        time.sleep(_TSC_SPAN_S)
        later, counted = both()
        measured.append((counted - count) * 1_000_000 / (later - at))
    return round(sum(measured) / len(measured))


def main(what: str) -> None:
    """Print one figure: ns an instruction (`kvm`) or kHz (`tsc`)."""
    figure = tsc_khz() if what == "tsc" else kvm_ns_per_instruction()
    sys.stdout.write(f"{figure}\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except OSError as error:
        sys.exit(str(error))
