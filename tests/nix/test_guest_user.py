"""Whose commands and files are in a guest that Nix makes: its user's, unless the host says so.

The agent is run here as such a guest starts it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream

from guests import LocalGuest, listening
from microvm_orchestrator import errors
from microvm_orchestrator.machine.channel.link import Link
from microvm_orchestrator.machine.channel.requests import ask
from microvm_orchestrator.machine.shell import Command, Shell
from microvm_orchestrator.together import beside
from nix.evaluation import ROOT

AGENT = ROOT / "guest/agent"
START = ROOT / "guest/nixos/as_user.py"
USER = "nobody"
SOON_S = 60.0
STOP_S = 5.0

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can start commands as somebody else"
)


@pytest.fixture
def folder_of_user() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    who = pwd.getpwnam(USER)
    os.chown(folder, who.pw_uid, who.pw_gid)
    yield folder
    shutil.rmtree(folder)


@asynccontextmanager
async def as_user(folder: Path, *options: str) -> AsyncGenerator[LocalGuest]:
    """Run the agent as a guest of ours starts it."""
    agent = folder / "agent"
    agent.mkdir()
    for path in [*AGENT.glob("*.py"), START]:
        shutil.copy(path, agent)
    path = folder / "ctl"

    @asynccontextmanager
    async def connect() -> AsyncGenerator[ByteStream]:
        async with await anyio.connect_unix(path) as stream:
            yield stream

    with listening(path) as fd:
        words = [sys.executable, "-I", "-S", agent / START.name, f"listener:{fd}", *options]
        process = subprocess.Popen(
            [*words, f"user={USER}"],
            stdin=subprocess.DEVNULL,
            pass_fds=(fd,),
            start_new_session=True,
        )
    try:
        with anyio.fail_after(SOON_S):
            yield LocalGuest(connect, folder, process)
    finally:
        process.kill()
        process.wait(STOP_S)


async def said(shell: Shell, *argv: str, user: str | None = None) -> str:
    ran = await shell.exec(Command(list(argv), user=user, cwd="/"))
    assert ran.exit.code == 0, ran
    return ran.stdout.decode().strip()


@needs_root
async def test_commands_are_the_users_unless_the_host_names_another(tmp_path: Path) -> None:
    async with as_user(tmp_path) as guest, guest.shell() as shell:
        assert await said(shell, "id", "-un") == USER
        assert await said(shell, "sh", "-c", "echo $USER; groups") == f"{USER}\nnogroup"
        assert await said(shell, "id", "-un", user="root") == "root"


@needs_root
async def test_files_and_their_folders_are_the_users(tmp_path: Path, folder_of_user: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "within").mkdir(parents=True)
    (tree / "within" / "file").write_text("text")
    async with as_user(tmp_path) as guest, guest.shell() as shell:
        await shell.put(f"{folder_of_user}/new/newer/file", b"text", parents=True)
        await shell.put_tree(tree, f"{folder_of_user}/copied")
        await shell.put(f"{folder_of_user}/roots", b"text", user="root")
        found = await said(shell, "find", str(folder_of_user), "-printf", "%P:%u\n")
    assert set(found.splitlines()) == {
        f":{USER}",
        f"new:{USER}",
        f"new/newer:{USER}",
        f"new/newer/file:{USER}",
        f"copied:{USER}",
        f"copied/within:{USER}",
        f"copied/within/file:{USER}",
        "roots:root",
    }


@needs_root
async def test_the_hook_of_a_clone_is_run_as_root(tmp_path: Path, folder_of_user: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\nid -un >{folder_of_user}/hooked\n")
    hook.chmod(0o755)
    async with as_user(tmp_path, f"hook={hook}") as guest, guest.connect() as transport:
        link = Link(transport)
        async with beside(link.run):
            await link.greeting()
            # Below `Shell`, which always sets the clock too.
            done = await ask(link, {"verb": b"fresh", "hook": 1})
            link.fail(errors.MachineUnreachable("closed"))
    assert done["done"] == [b"hook"]
    assert (folder_of_user / "hooked").read_text() == "root\n"
