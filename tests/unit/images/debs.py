"""Debian packages and a place to get them from, made by hand: good ones and hostile ones."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


def member(name: str, data: bytes = b"", **about: object) -> tuple[tarfile.TarInfo, bytes]:
    """Describe one entry of an archive, any way one likes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in about.items():
        setattr(info, key, value)
    return info, data


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=0o755)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Write an archive just as it is told."""
    out = bytearray()
    for info, data in members:
        out += info.tobuf(tarfile.GNU_FORMAT)
        out += data + bytes(-len(data) % 512)
    return bytes(out) + bytes(1024)


def deb_of(*members: tuple[tarfile.TarInfo, bytes], control: str = "") -> bytes:
    """Write a package around such an archive."""
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar": tar_of(member("./control", control.encode())),
        "data.tar": tar_of(*members),
    }
    out = io.BytesIO()
    out.write(b"!<arch>\n")
    for name, data in parts.items():
        out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
        out.write(data + b"\n" * (len(data) % 2))
    return out.getvalue()


@dataclass
class Repository:
    """A folder that apt takes packages from, and the configuration that tells it so."""

    path: Path
    _stanzas: list[str] = field(default_factory=list[str])

    @property
    def config(self) -> Path:
        return self.path / "apt.conf"

    def add(self, name: str, version: str, *more: str, data: bytes | None = None) -> bytes:
        """Offer a package; `more` are lines of its control file."""
        fields = [f"Package: {name}", f"Version: {version}", "Architecture: amd64", *more]
        file = f"{name}_{version}_amd64.deb"
        content = data if data is not None else deb_of(control="\n".join(fields) + "\n")
        (self.path / file).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        fields += [f"Filename: ./{file}", f"Size: {len(content)}", f"SHA256: {digest}"]
        self._stanzas.append("\n".join(fields) + "\n")
        self._write()
        return content

    def damage(self, name: str, version: str) -> None:
        """Let the file of a package be another one than the index says."""
        file = self.path / f"{name}_{version}_amd64.deb"
        file.write_bytes(file.read_bytes()[::-1])

    def _write(self) -> None:
        index = self.path / "Packages"
        index.write_text("\n".join(self._stanzas))
        # Apt asks for what is newer, and HTTP counts in seconds.
        at = 1_000_000_000 + 60 * len(self._stanzas)
        os.utime(index, (at, at))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # as it is overridden
        pass


@contextmanager
def open_repository(path: Path) -> Generator[Repository]:
    """Serve a folder to apt until the block ends."""
    path.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        sources = path / "sources.list"
        sources.write_text(f"deb [trusted=yes] http://127.0.0.1:{server.server_port}/ ./\n")
        repository = Repository(path)
        repository.config.write_text(
            f'Dir::Etc::sourcelist "{sources}";\nDir::Etc::sourceparts "/dev/null";\n'
            'Dir::Etc::preferencesparts "/dev/null";\nAcquire::http::Proxy "false";\n'
        )
        repository.add("unrelated", "1")
        yield repository
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
