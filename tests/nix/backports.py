"""What the sources of this host offer, and a systemd of their distribution's backports beside it.

The systemd of Debian 12 cannot start a service in a group beside those of its machines, as that of
NixOS does; the one of its backports can. No source is named here: backports are asked for where
the distribution is. Above is `debian`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio.to_thread

from microvm_orchestrator import errors, log, proc
from microvm_orchestrator.images.packages import Index

_ASK_S = 120.0
_UPDATE_S = 300.0
_TARGETS = "$(IDENTIFIER) $(COMPONENT) $(CODENAME) $(REPO_URI)"
_WANTED = """\
Package: src:systemd
Pin: release n={suite}
Pin-Priority: 990
"""
_SOURCES = Path("/etc/apt/sources.list.d")


async def with_backports(offered: Path, folder: Path) -> Index:
    """Open what is offered in one folder, with backports, in another that is not there yet.

    Where there are none the log says so, and the systemd is the usual one.
    """
    found = (await _asked(offered, "indextargets", "--format", _TARGETS)).splitlines()
    ours = [line.split() for line in found if line.startswith("Packages main ")]
    # Names with a hyphen are of what comes beside a distribution.
    distributions = {name: uri for _, _, name, uri in ours if "-" not in name}
    try:
        for name, uri in distributions.items():
            suite = f"{name}-backports"
            await anyio.to_thread.run_sync(_lay_out, offered, folder, suite, uri)
            await _asked(folder, "update")
    except errors.CommandFailed as error:
        log.get(__name__).warning("no_backports", why=str(error))
        return Index(offered)
    return Index(folder)


async def _asked(index: Path, *words: str) -> str:
    command = ["apt-get", "-c", index / "apt.conf", "-qq", *words]
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    timeout_s = _UPDATE_S if "update" in words else _ASK_S
    return (await proc.run(command, timeout_s=timeout_s, env=env)).stdout.decode()


def _lay_out(offered: Path, folder: Path, suite: str, uri: str) -> None:
    if not folder.exists():
        shutil.copytree(offered / "lists", folder / "lists", symlinks=True)
        shutil.copytree(_SOURCES, folder / "sources")
        for name in ("archives/partial", "answers"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "wanted").touch()
        conf = (offered / "apt.conf").read_text().replace(str(offered), str(folder))
        conf += f'Dir::Etc::sourceparts "{folder}/sources";\n'
        conf += f'Dir::Etc::preferences "{folder}/wanted";\n'
        (folder / "apt.conf").write_text(conf)
    (folder / f"sources/{suite}.list").write_text(f"deb {uri} {suite} main\n")
    with (folder / "wanted").open("a") as wanted:
        wanted.write(_WANTED.format(suite=suite) + "\n")
