"""A disk that boots the embedded guest by a loader of its own, as disks of others boot themselves.

    sector 0            the loader and the table of partitions
    from 1 MiB on       the kernel and its first root, read by the loader through the BIOS
    partition 1         the guest's root, which is only read
    partition 2         empty: the guest makes a file system there, and keeps what it writes

So the guest has our agent, and all that it writes is on its disk. What it boots is what machines of
ours boot that are given a kernel, so it needs the speed of the clock on its kernel's command line.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from microvm_orchestrator.cpio import ALIGN, CpioWriter
from microvm_orchestrator.images import guest_files
from microvm_orchestrator.machine.base import Boot
from microvm_orchestrator.machine.qemu import qcow2

_SECTOR = 512
_CLUSTER = 1 << 16
# What the loader reads at a time: a segment of the BIOS has room for no more.
_PIECE = 1 << 15
_BEGIN = 1 << 20
_SCRATCH = 192 << 20
# Where a kernel's first part, the rest of it and its first root are put. The last one is out of
# the way of a kernel that has unpacked itself, and within the memory of the smallest guests.
_SETUP_AT, _KERNEL_AT, _INITRD_AT = 0x90000, 0x100000, 0x7000000
# In the first part, behind all that it has itself.
_WORDS_AT, _HEAP_END = 0x7800, 0x7600
# Of the kernel's header, by Linux' boot protocol for x86.
_SETUP_SECTS, _MAGIC_AT, _LOADER, _FLAGS = 0x1F1, 0x202, 0x210, 0x211
_RAMDISK, _HEAP_END_PTR, _CMDLINE_PTR = 0x218, 0x224, 0x228
_CAN_USE_HEAP, _NO_ONES_LOADER = 0x80, 0xFF
_TABLE_AT, _PARTITIONS_AT = 0x17E, 0x1BE
_ROOT, _FOUND = b"root=/dev/vda\nscratch=\n", b"root=/dev/vda1\nscratch=/dev/vda2\n"

# Reads what the table names, in pieces, and hands over to the kernel. What cannot be read ends it.
_LOADER_SOURCE = f"""
    .code16
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    cld
    movb %dl, drive
    movw $(0x7c00 + {_TABLE_AT}), %bp
part:
    movw 8(%bp), %cx
    testw %cx, %cx
    jz boot
    movl (%bp), %eax
    movl %eax, sector
    movl 4(%bp), %ebx
piece:
    pushw %cx
    pushl %ebx
    movb $0x42, %ah
    movb drive, %dl
    movw $packet, %si
    int $0x13
    jc failed
    popl %ebx
    movl %ebx, %eax
    movw %ax, target
    shrl $16, %eax
    movb %al, target + 2
    movb %ah, target + 5
    pushl %ebx
    movb $0x87, %ah
    movw $({_PIECE} / 2), %cx
    movw $segments, %si
    int $0x15
    jc failed
    popl %ebx
    addl ${_PIECE}, %ebx
    addl $({_PIECE} / {_SECTOR}), sector
    popw %cx
    loop piece
    addw $10, %bp
    jmp part
failed:
    hlt
    jmp failed
boot:
    cli
    movw $({_SETUP_AT} >> 4), %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movw %ax, %ss
    movw $0xe000, %sp
    ljmp $(({_SETUP_AT} >> 4) + 0x20), $0
    .balign 4
packet:
    .byte 16, 0
    .word {_PIECE} / {_SECTOR}, 0, 0x1000
sector:
    .long 0, 0
segments:
    .quad 0, 0
    .word 0xffff, 0
    .byte 1, 0x93, 0, 0
    .word 0xffff
target:
    .word 0
    .byte 0, 0x93, 0, 0
    .quad 0, 0
drive:
    .byte 0
"""


def why_not() -> str | None:
    """Tell what is missing for one to be made here."""
    missing = [name for name in ("as", "ld") if shutil.which(name) is None]
    return f"there is no {', '.join(missing)}" if missing else None


def _as_it_is(init: bytes) -> bytes:
    return init


@dataclass(frozen=True, slots=True)
class _Part:
    """What the loader reads, and where to."""

    data: bytes
    address: int

    @property
    def pieces(self) -> int:
        return -(-len(self.data) // _PIECE)


def write(
    path: Path, boot: Boot, tsc_khz: int, changed: Callable[[bytes], bytes] = _as_it_is
) -> None:
    """Write the disk as a qcow2; `boot` is the embedded guest.

    `changed` is done to the guest's first program beside what it is told of the disk.
    """
    words = (
        f"console=ttyS0 quiet loglevel=3 mitigations=off nokaslr reboot=t panic=-1 {boot.cmdline}"
    )
    words += f" tsc_early_khz={tsc_khz} tsc=reliable"
    initrd = _first_root(boot, changed)
    setup, rest = _kernel(boot.kernel.read_bytes(), words, len(initrd))
    [root] = boot.disks
    assert root.path is not None
    image, table, at = io.BytesIO(), b"", _BEGIN
    parts = (_Part(setup, _SETUP_AT), _Part(rest, _KERNEL_AT), _Part(initrd, _INITRD_AT))
    for part in parts:
        image.seek(at)
        image.write(part.data)
        table += struct.pack("<IIH", at // _SECTOR, part.address, part.pieces)
        at += part.pieces * _PIECE
    at = _aligned(at)
    image.seek(at)
    length = _aligned(image.write(root.path.read_bytes()))
    listed = _partition(at, length) + _partition(at + length, _SCRATCH)
    code = _assembled(path.parent)
    assert len(code) <= _TABLE_AT, "the loader is too long"
    assert len(table) + 2 <= _PARTITIONS_AT - _TABLE_AT
    first = code.ljust(_TABLE_AT, b"\0") + table
    first = first.ljust(_PARTITIONS_AT, b"\0") + listed
    image.seek(0)
    image.write(first.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa")
    _write_qcow2(path, image.getvalue(), at + length + _SCRATCH)


def _kernel(image: bytes, words: str, initrd: int) -> tuple[bytes, bytes]:
    """Part a kernel in what runs in real mode and the rest, and tell it all it is told."""
    assert image[_MAGIC_AT : _MAGIC_AT + 4] == b"HdrS"
    length = (image[_SETUP_SECTS] + 1) * _SECTOR
    assert length < _HEAP_END
    setup = bytearray(image[:length].ljust(_PIECE, b"\0"))
    setup[_LOADER] = _NO_ONES_LOADER
    setup[_FLAGS] |= _CAN_USE_HEAP
    struct.pack_into("<II", setup, _RAMDISK, _INITRD_AT, initrd)
    struct.pack_into("<H", setup, _HEAP_END_PTR, _HEAP_END)
    struct.pack_into("<I", setup, _CMDLINE_PTR, _SETUP_AT + _WORDS_AT)
    told = words.encode() + b"\0"
    setup[_WORDS_AT : _WORDS_AT + len(told)] = told
    return bytes(setup), image[length:]


def _first_root(boot: Boot, also: Callable[[bytes], bytes]) -> bytes:
    """Let the guest's first program find its root, and what it may write, in partitions."""
    init, mode = guest_files.read_folder(guest_files.INITRD)["init"]
    assert _ROOT in init
    changed = also(init.replace(_ROOT, _FOUND))
    out = io.BytesIO(boot.initrd.read_bytes())
    out.seek(0, os.SEEK_END)
    out.write(bytes(-out.tell() % ALIGN))
    writer = CpioWriter(out)
    writer.add("init", stat.S_IFREG | mode, len(changed), [changed])
    writer.end()
    return out.getvalue()


def _assembled(folder: Path) -> bytes:
    made, linked = folder / "loader.o", folder / "loader"
    subprocess.run(
        ["as", "--32", "-o", made, "-"], input=_LOADER_SOURCE.encode(), check=True, timeout=60
    )
    how = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary"]
    subprocess.run(["ld", *how, "-o", linked, made], check=True, timeout=60)
    return linked.read_bytes()


def _partition(at: int, length: int) -> bytes:
    linux = 0x83
    return struct.pack(
        "<B3sB3sII", 0, b"\xff" * 3, linux, b"\xff" * 3, at // _SECTOR, length // _SECTOR
    )


def _aligned(size: int) -> int:
    return -(-size // _BEGIN) * _BEGIN


def _write_qcow2(path: Path, data: bytes, size: int) -> None:
    """Write a disk that begins with some data, and is empty behind it."""
    qcow2.create(path, size)
    count = -(-len(data) // _CLUSTER)
    # Behind the header, the counts and the first table; one second table and one block of counts
    # are enough for half a GiB.
    table, first = 4, 5
    refcounts, first_table = 2, 3
    assert count < _CLUSTER // 8
    used = 1 << 63
    with path.open("r+b") as file:
        file.seek(refcounts * _CLUSTER)
        file.write(struct.pack(f">{first + count}H", *[1] * (first + count)))
        file.seek(first_table * _CLUSTER)
        file.write(struct.pack(">Q", table * _CLUSTER | used))
        file.seek(table * _CLUSTER)
        entries = [(first + number) * _CLUSTER | used for number in range(count)]
        file.write(struct.pack(f">{count}Q", *entries))
        file.seek(first * _CLUSTER)
        file.write(data.ljust(count * _CLUSTER, b"\0"))
