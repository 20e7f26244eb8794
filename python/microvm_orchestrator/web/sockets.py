"""The sockets we listen on: made here with the right permissions, or handed over by systemd.

A unix socket is never wider open than asked, not for a moment; a dead one of an earlier daemon is
replaced, a live one is left alone; at the end only our own is removed. Above sits the daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import ipaddress
import os
import socket
import stat
from typing import TYPE_CHECKING

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from microvm_orchestrator import config

# A burst of clients waits in the kernel rather than being turned away.
BACKLOG = 1024
# sd_listen_fds(3): the first descriptor handed over.
_FIRST_INHERITED = 3


@contextlib.contextmanager
def open_unix(settings: config.Socket) -> Generator[socket.socket]:
    """Listen on a unix socket; its directory is made where it is missing.

    Raises:
        AlreadyRunning: somebody listens there.
        ConfigInvalid: the path or the group cannot be used.
    """
    path = settings.path
    group = _group_id(settings.group)
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear_away(path)
            # `bind` gives the file the mode of the open socket, less the umask: never more than
            # asked for. The umask itself belongs to the whole process and its threads.
            os.fchmod(listening.fileno(), settings.mode)
            listening.bind(str(path))
            if group is not None:
                os.chown(path, -1, group)
            path.chmod(settings.mode)
        except OSError as error:
            raise errors.ConfigInvalid(
                f"cannot listen on {path}: {error.strerror}",
                hint="name another place with --socket",
            ) from error
        ours = _identity(path)
        listening.listen(BACKLOG)
        listening.settimeout(0)
        try:
            yield listening
        finally:
            if _identity(path) == ours:
                path.unlink(missing_ok=True)


def _clear_away(path: Path) -> None:
    """Remove the socket of a daemon that is gone."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise errors.ConfigInvalid(f"{path} exists and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # so many wait to be let in that somebody must be there
    raise errors.AlreadyRunning(f"another daemon listens on {path}")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _group_id(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise errors.ConfigInvalid(f"socket.group: there is no group {name}") from error


@contextlib.contextmanager
def open_tcp(settings: config.Tcp) -> Generator[socket.socket | None]:
    """Listen on the network, if the settings say so.

    Raises:
        ConfigInvalid: the address cannot be used, or is every address without that being asked.
    """
    if settings.address is None:
        yield None
        return
    host, port = settings.address
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if is_any(address[0]) and not settings.allow_any_address:
            raise errors.ConfigInvalid(
                f"tcp.listen: {host} is every address of this host",
                hint="name one address, or set tcp.allow_any_address",
            )
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise errors.ConfigInvalid(f"tcp.listen: {host}: {error.strerror}") from error
    with listening:
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError as error:
            raise errors.ConfigInvalid(
                f"cannot listen on {host}:{port}: {error.strerror}"
            ) from error
        listening.listen(BACKLOG)
        listening.settimeout(0)
        yield listening


def is_any(address: object) -> bool:
    return ipaddress.ip_address(str(address).partition("%")[0]).is_unspecified


def inherited(env: Mapping[str, str]) -> list[socket.socket]:
    """Take over the sockets systemd listens on for us; none unless they are meant for us.

    Raises:
        ConfigInvalid: one is not a listening stream socket.
    """
    count = env.get("LISTEN_FDS", "")
    if env.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    found: list[socket.socket] = []
    for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        found.append(_listening(fd))
    return found


def _listening(fd: int) -> socket.socket:
    try:
        handed = socket.socket(fileno=fd)
        if handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            handed.settimeout(0)
            return handed
        handed.detach()
    except OSError:
        pass
    raise errors.ConfigInvalid(
        f"descriptor {fd} from LISTEN_FDS is no listening socket",
        hint="the socket unit needs ListenStream= and Accept=no",
    )
