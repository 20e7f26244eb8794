"""Taps: interfaces of this host's kernel whose other end is an open file.

Made for a link by the kernel's networks, and opened here for the QEMU that has the link, which
inherits the file and needs no right of its own. Whatever has to be in another network namespace
runs in a thread that ends with it, so no thread of ours is ever in the wrong one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Tap

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_TUN = Path("/dev/net/tun")
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
# Frames as they are: what a network card would do for the guest is left out, so that a saved
# machine can be loaded where its link is a socket.
_TAP_NO_PI = 0x0002 | 0x1000


def within(netns: Path | None, act: Callable[[], T]) -> T:
    """Do something in a network namespace. Raises: Unavailable when there is no such."""
    if netns is None:
        return act()

    def entered() -> T:
        _enter(netns)
        return act()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(entered).result()


def open_tap(tap: Tap) -> int:
    """Open the other end of an interface that is there. Raises: Unavailable."""

    def opened() -> int:
        try:
            # What is not there would be made.
            socket.if_nametoindex(tap.name)
            return _attach(tap.name)
        except OSError as error:
            raise errors.Unavailable(
                f"network interface {tap.name} cannot be opened: {error.strerror or error}"
            ) from error

    return within(tap.netns, opened)


def make_tap(name: str) -> None:
    """Make an interface where the calling thread is; it stays until it is deleted."""
    tap = _attach(name)
    try:
        fcntl.ioctl(tap, _TUNSETPERSIST, 1)
    finally:
        os.close(tap)


@contextmanager
def passing_tap(name: str) -> Generator[None]:
    """Have an interface where the calling thread is, and for no longer than the block."""
    tap = _attach(name)
    try:
        yield
    finally:
        os.close(tap)


def _attach(name: str) -> int:
    tap = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_NO_PI))
    except BaseException:
        os.close(tap)
        raise
    return tap


def _enter(netns: Path) -> None:
    try:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise errors.Unavailable(f"no network namespace {netns}: {error.strerror}") from error
    try:
        # os.setns is of Python 3.12.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise errors.Unavailable(f"no way into {netns}: {os.strerror(number)}")
    finally:
        os.close(fd)
