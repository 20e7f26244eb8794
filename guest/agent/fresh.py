"""Become somebody else: what a clone must change before it is handed out, and the proof of it.

Only what the request names is changed. The answer lists what was done, in order; the host hands the
machine out only if nothing is missing.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct
import time

import wire
from job import Job
from stream import Refused, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from jobs import Jobs
    from link import Link

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_SIOCSIFHWADDR = 0x8924
_SIOCADDRT = 0x890B
_IFF_UP = 0x1
_IFF_RUNNING = 0x40
_RTF_UP_GATEWAY = 0x1 | 0x2
_ARPHRD_ETHER = 1
_MACHINE_ID = "/etc/machine-id"
_HOSTNAME = "/etc/hostname"
_HOOK_TIMEOUT_MS = 20_000


class Fresh(Stream):
    """A change of identity that waits for the guest's own hook."""

    def __init__(self, link: Link, number: int, jobs: Jobs, done: list[bytes], hook: bytes) -> None:
        super().__init__(link, number)
        self.done = done
        self.job = Job(link.engine, "fresh")
        self.job.start(jobs.children, {"argv": [hook], "stdin": 0, "timeout_ms": _HOOK_TIMEOUT_MS})
        self.job.on_end = self._on_hook

    def on_over(self) -> None:
        self.job.stop(b"cancelled")

    def _on_hook(self) -> None:
        if self.link.streams.get(self.number) is not self:
            return
        code = os.waitstatus_to_exitcode(self.job.status or 0)
        if code or self.job.failure:
            said = b"".join(payload for _, payload in self.job.output.chunks)[-1000:]
            self.fail("failed", f"the hook ended with {code}: {said.decode(errors='replace')}")
        else:
            self.result({"done": [*self.done, b"hook"]})


def change(fields: wire.Fields) -> list[bytes]:
    """Change what the request names; return the names in the order of the changes."""
    changes: list[tuple[str, Callable[[], None]]] = [
        ("entropy", lambda: _stir(wire.blob(fields, "entropy", 512))),
        ("realtime_ns", lambda: _set_clock(wire.integer(fields, "realtime_ns", 0, 2**62))),
        ("hostname", lambda: _set_hostname(wire.blob(fields, "hostname", 64))),
        ("machine_id", lambda: _set_machine_id(wire.blob(fields, "machine_id", 32))),
        ("interfaces", lambda: _set_interfaces(wire.blobs(fields, "interfaces", 16))),
    ]
    done: list[bytes] = []
    for name, act in changes:
        if name in fields:
            try:
                act()
            except OSError as error:
                text = os.strerror(error.errno or 0)
                raise Refused("failed", f"{name}: {text}; done before it: {done}") from None
            done.append(name.encode())
    return done


def _stir(entropy: bytes) -> None:
    with open("/dev/urandom", "wb", buffering=0) as random:
        added = struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy
        fcntl.ioctl(random, _RNDADDENTROPY, added)
        fcntl.ioctl(random, _RNDRESEEDCRNG)


def _set_clock(realtime_ns: int) -> None:
    time.clock_settime_ns(time.CLOCK_REALTIME, realtime_ns)


def _set_hostname(name: bytes) -> None:
    _socket.sethostname(os.fsdecode(name))
    _replace(_HOSTNAME, name + b"\n")


def _set_machine_id(identity: bytes) -> None:
    if len(identity) != 32 or not set(identity) <= set(b"0123456789abcdef"):
        raise wire.Broken("the field machine_id is not 32 lower-case hexadecimal digits")
    _replace(_MACHINE_ID, identity + b"\n")


def _replace(path: str, content: bytes) -> None:
    part = path + ".fresh"
    with open(part, "wb") as file:
        file.write(content)
    os.chmod(part, 0o444 if path == _MACHINE_ID else 0o644)
    os.rename(part, path)


def _set_interfaces(interfaces: list[bytes]) -> None:
    """Each is `name mac address/prefix gateway`; a `-` leaves the one it stands for."""
    for line in interfaces:
        words = line.split()
        if len(words) != 4 or not 0 < len(words[0]) < 16:
            raise wire.Broken("an interface is: name mac address/prefix gateway")
        name, mac, address, gateway = words
        with_socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
        try:
            _set_interface(with_socket.fileno(), name, mac, address, gateway)
        except ValueError:
            raise wire.Broken(f"the interface {line!r} is garbled") from None
        finally:
            with_socket.close()


def _set_interface(fd: int, name: bytes, mac: bytes, address: bytes, gateway: bytes) -> None:
    if mac != b"-":
        _set_flags(fd, name, 0)
        hardware = bytes.fromhex(mac.replace(b":", b"").decode("ascii"))
        if len(hardware) != 6:
            raise ValueError
        fcntl.ioctl(fd, _SIOCSIFHWADDR, struct.pack("16sH14s8x", name, _ARPHRD_ETHER, hardware))
    host, _, prefix = address.partition(b"/")
    if b":" in host:
        _add_ipv6(name, host, int(prefix))
    elif address != b"-":
        bits = int(prefix)
        if not 0 <= bits <= 32:
            raise ValueError
        mask = (0xFFFFFFFF << (32 - bits) & 0xFFFFFFFF).to_bytes(4, "big")
        fcntl.ioctl(fd, _SIOCSIFADDR, struct.pack("16s16s8x", name, _sockaddr(_ip(host))))
        fcntl.ioctl(fd, _SIOCSIFNETMASK, struct.pack("16s16s8x", name, _sockaddr(mask)))
    _set_flags(fd, name, _IFF_UP | _IFF_RUNNING)
    if gateway != b"-":
        _add_default_route(fd, _ip(gateway))


def _add_ipv6(name: bytes, host: bytes, bits: int) -> None:
    try:
        packed = _socket.inet_pton(_socket.AF_INET6, host.decode("ascii"))
    except OSError:
        raise ValueError from None
    if not 0 <= bits <= 128:
        raise ValueError
    text = os.fsdecode(name)
    # Whoever gives the address knows that nobody else has it, and it is wanted now.
    with open(f"/proc/sys/net/ipv6/conf/{text}/accept_dad", "w") as file:
        file.write("0")
    # struct in6_ifreq
    address = struct.pack("16sIi", packed, bits, _socket.if_nametoindex(text))
    with_socket = _socket.socket(_socket.AF_INET6, _socket.SOCK_DGRAM)
    try:
        fcntl.ioctl(with_socket.fileno(), _SIOCSIFADDR, address)
    except FileExistsError:
        pass
    finally:
        with_socket.close()


def _set_flags(fd: int, name: bytes, flags: int) -> None:
    fcntl.ioctl(fd, _SIOCSIFFLAGS, struct.pack("16sh22x", name, flags))


def _add_default_route(fd: int, gateway: bytes) -> None:
    nowhere = _sockaddr(bytes(4))
    # struct rtentry: destination, gateway and mask, the flags, and the rest is zero
    where = nowhere, _sockaddr(gateway), nowhere
    route = struct.pack("L16s16s16sHhLPhPLLH0L", 0, *where, _RTF_UP_GATEWAY, *[0] * 8)
    try:
        fcntl.ioctl(fd, _SIOCADDRT, route)
    except FileExistsError:
        pass


def _ip(text: bytes) -> bytes:
    parts = [int(part) for part in text.split(b".")]
    if len(parts) != 4:
        raise ValueError
    return bytes(parts)


def _sockaddr(address: bytes) -> bytes:
    return struct.pack("HH4s8x", _socket.AF_INET, 0, address)
