from __future__ import annotations

import lzma
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.images.kernel import Kernel, is_wanted, read_kernel, read_needs
from microvm_orchestrator.images.tree import File, Text, Tree

RELEASE = "6.1.0-56-cloud-amd64"
MODULES = f"usr/lib/modules/{RELEASE}"


def module(*entries: str, section: bytes = b".modinfo") -> bytes:
    """Write a 64-bit ELF file that has nothing but names and one section of entries."""
    info = b"".join(entry.encode() + b"\0" for entry in entries)
    names = b"\0.shstrtab\0" + section + b"\0"
    start = 64
    table = start + len(names) + len(info)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 1
    )

    def entry(label: int, kind: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", label, kind, 0, 0, offset, size, 0, 0, 1, 0)

    return (
        head
        + names
        + info
        + entry(0, 0, 0, 0)
        + entry(1, 3, start, len(names))
        + entry(11, 1, start + len(names), len(info))
    )


def kernel(modules: dict[str, bytes], *, builtin: str = "") -> Kernel:
    tree = Tree()
    tree.put(f"boot/vmlinuz-{RELEASE}", File(Text(b"kernel")))
    tree.put(f"{MODULES}/modules.builtin", File(Text(builtin.encode())))
    for path, data in modules.items():
        tree.put(f"{MODULES}/kernel/{path}", File(Text(data)))
    return read_kernel(tree)


def test_a_module_says_what_it_needs_and_what_it_would_like() -> None:
    data = module(
        "license=GPL",
        "softdep=pre: crc32c-intel aes post: later",
        "depends=virtio,virtio-ring",
        "name=virtio_blk",
        "depends=",
    )
    assert read_needs("x", data) == (("virtio", "virtio_ring"), ("crc32c_intel", "aes"))


def test_a_module_that_needs_nothing_says_so() -> None:
    assert read_needs("x", module("license=GPL", "depends=")) == ((), ())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        b"no module",
        module("depends=")[:100],
        module("depends=", section=b".modinf0"),
        b"\x7fELF\x01\x01" + module()[6:],
    ],
)
def test_what_is_no_module_is_refused(data: bytes) -> None:
    with pytest.raises(errors.PackageRefused, match="module x"):
        read_needs("x", data)


VALID = module("license=GPL", "softdep=pre: a", "depends=b,c")


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=8))
def test_a_garbled_module_is_read_or_refused_and_nothing_else(
    garbles: list[tuple[int, int]],
) -> None:
    data = bytearray(VALID)
    for at, value in garbles:
        data[at] = value
    try:
        read_needs("x", bytes(data))
    except errors.PackageRefused:
        return


def test_modules_come_in_an_order_they_can_be_loaded_in() -> None:
    found = kernel(
        {
            "virtio/virtio.ko": module("depends=virtio_ring"),
            "virtio/virtio_ring.ko": module("depends="),
            "block/virtio_blk.ko": module("depends=virtio,virtio-ring"),
            "char/virtio-rng.ko": module("depends=virtio"),
            "other.ko": module("depends="),
        }
    ).modules(["virtio_blk", "virtio-rng"])
    assert [m.name for m in found] == ["virtio_ring", "virtio", "virtio_blk", "virtio_rng"]
    assert found[-1].path == "kernel/char/virtio-rng.ko"


def test_what_is_built_in_is_not_loaded_and_not_missed() -> None:
    found = kernel(
        {"fs/squashfs.ko": module("depends=zstd_decompress")},
        builtin="kernel/lib/zstd/zstd-decompress.ko\nkernel/fs/ext4/ext4.ko\n",
    ).modules(["squashfs", "ext4"])
    assert [m.name for m in found] == ["squashfs"]


def test_a_wish_is_loaded_first_when_it_is_there() -> None:
    found = kernel(
        {
            "a.ko": module("softdep=pre: b nowhere", "depends="),
            "b.ko": module("depends="),
        }
    ).modules(["a"])
    assert [m.name for m in found] == ["b", "a"]


def test_a_packed_module_is_unpacked() -> None:
    data = module("depends=")
    found = kernel({"a.ko.xz": lzma.compress(data)}).modules(["a"])
    assert found[0].data == data
    assert found[0].path == "kernel/a.ko"


def test_a_packed_module_that_unpacks_to_very_much_is_refused() -> None:
    with pytest.raises(errors.PackageRefused, match="larger than"):
        kernel({"a.ko.xz": lzma.compress(bytes(65 << 20), preset=0)}).modules(["a"])


def test_a_packed_module_that_is_damaged_is_refused() -> None:
    with pytest.raises(errors.PackageRefused, match="damaged"):
        kernel({"a.ko.xz": b"no xz"}).modules(["a"])


def test_a_module_that_is_missing_is_told_with_the_kernel() -> None:
    with pytest.raises(errors.PackageRefused, match=f"gone of kernel {RELEASE} is missing"):
        kernel({"a.ko": module("depends=gone")}).modules(["a"])


def test_modules_that_need_each_other_are_refused() -> None:
    found = kernel({"a.ko": module("depends=b"), "b.ko": module("depends=a")})
    with pytest.raises(errors.PackageRefused, match="needs itself"):
        found.modules(["a"])


def test_there_is_exactly_one_kernel() -> None:
    with pytest.raises(errors.PackageRefused, match="0 kernels"):
        read_kernel(Tree())
    tree = Tree()
    for name in ("1", "2"):
        tree.put(f"boot/vmlinuz-{name}", File(Text(b"")))
    with pytest.raises(errors.PackageRefused, match="2 kernels"):
        read_kernel(tree)


def test_of_the_package_only_what_is_read_is_wanted() -> None:
    assert is_wanted(f"boot/vmlinuz-{RELEASE}")
    assert is_wanted(f"{MODULES}/kernel/fs/fuse/fuse.ko")
    assert is_wanted(f"{MODULES}/modules.builtin")
    assert not is_wanted(f"boot/System.map-{RELEASE}")
    assert not is_wanted("usr/share/doc/x")
