"""The first root: what the kernel needs to reach the disk, and the script that does it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from microvm_orchestrator.images import guest_files
from microvm_orchestrator.images.cpio import write_cpio
from microvm_orchestrator.images.tree import Directory, File, Text, Tree

if TYPE_CHECKING:
    from microvm_orchestrator.images.kernel import Kernel

# Loaded at every start, so the list is short: each costs up to ten milliseconds under emulation.
MODULES = ("virtio_mmio", "virtio_blk", "virtio_console", "virtio_rng", "squashfs", "overlay")
# Loaded after those where the machine has a PCI bus.
PCI_MODULES = ("virtio_pci",)
# Loaded by a seeded run only, whose disks are files.
SEEDED_MODULES = ("loop",)


def make_initrd(kernel: Kernel, busybox: File) -> bytes:
    """Raises: PackageRefused."""
    tree = Tree()
    for name in ("dev", "proc", "sys", "low", "new", "up"):
        tree.put(name, Directory())
    tree.put("bin/busybox", File(busybox.content, 0o755))
    for path, (data, mode) in guest_files.read_folder(guest_files.INITRD).items():
        tree.put(path, File(Text(data), mode))
    always = kernel.modules(MODULES)
    names = {module.name for module in always}
    bus = [module for module in kernel.modules(PCI_MODULES) if module.name not in names]
    seeded = kernel.modules(SEEDED_MODULES)
    for folder, modules in (
        ("modules", always),
        ("modules-pci", bus),
        ("modules-seeded", seeded),
    ):
        tree.put(folder, Directory())
        for number, module in enumerate(modules):
            tree.write(f"{folder}/{number:02}-{module.name}.ko", module.data)
    out = io.BytesIO()
    write_cpio(tree, out)
    return out.getvalue()
