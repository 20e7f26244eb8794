from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.images.programs import (
    PROGRAMS,
    Program,
    Release,
    find_release,
    read_program,
    read_told,
)
from unit.images.debs import link, member, tar_of

if TYPE_CHECKING:
    from pathlib import Path

CLAUDE, CODEX = PROGRAMS["claude"], PROGRAMS["codex"]
EVERY = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
CHECKSUM = base64.b64encode(hashlib.sha512(b"").digest()).decode()


def told(**about: str) -> bytes:
    answer = {"version": "2.1.329", "dist.integrity": f"sha512-{CHECKSUM}"} | about
    return json.dumps(answer).encode()


def kept(tmp_path: Path, content: bytes) -> Release:
    release = Release(CLAUDE, "1.0.0", CHECKSUM)
    release.place(tmp_path).write_bytes(content)
    return release


def test_a_release_is_known_by_version_and_checksum() -> None:
    assert read_told(CLAUDE, told()) == Release(CLAUDE, "2.1.329", CHECKSUM)


def test_a_package_of_a_platform_is_known_by_the_version_of_the_whole() -> None:
    release = read_told(CODEX, told(version="0.169.0-linux-x64"))
    assert (release.version, release.wanted) == ("0.169.0", "@openai/codex@0.169.0-linux-x64")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"no json",
        told(version="../../x"),
        told(**{"dist.integrity": "sha1-abc"}),
        told(**{"dist.integrity": "sha512-short"}),
    ],
)
def test_an_answer_that_describes_no_release_is_refused(answer: bytes) -> None:
    with pytest.raises(errors.PackageRefused):
        read_told(CLAUDE, answer)


@EVERY
@pytest.mark.parametrize("version", ["", "--registry=x", "1.0", "git+ssh://x", "../x", "1.0.0 "])
async def test_what_npm_would_take_for_something_else_is_no_version(
    tmp_path: Path, version: str, program: Program
) -> None:
    with pytest.raises(errors.InvalidInput, match=program.title):
        await find_release(program, version, tmp_path)


def test_of_the_package_only_the_program_and_its_licence_are_taken(tmp_path: Path) -> None:
    package = tar_of(
        member("package/claude", b"program"),
        member("package/LICENSE.md", b"licence"),
        member("package/package.json", b"{}"),
    )
    release = kept(tmp_path, gzip.compress(package))
    tree = read_program(release, tmp_path, tmp_path)
    assert [path for path, _ in tree] == ["LICENSE.md", "bin", "bin/claude"]
    program = tree.file("bin/claude")
    assert (program.read(), program.mode) == (b"program", 0o755)


@EVERY
def test_a_program_lies_where_its_command_leads(tmp_path: Path, program: Program) -> None:
    package = tar_of(*(member(path, path.encode()) for path in program.files))
    release = Release(program, "1.0.0", CHECKSUM)
    release.place(tmp_path).write_bytes(gzip.compress(package))
    tree = read_program(release, tmp_path, tmp_path)
    main = tree.file(program.command.removeprefix(f"opt/{program.name}/"))
    assert main.mode == 0o755
    assert {tree.file(place).read().decode() for place in program.files.values()} == {
        *program.files
    }


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b"no tar"),
        gzip.compress(tar_of(member("package/claude", b"x")))[:-9],
        gzip.compress(tar_of(member("package/other", b"x"))),
        gzip.compress(tar_of(link("package/claude", "/bin/sh"))),
        gzip.compress(tar_of(member("../claude", b"x"))),
    ],
    # Their content says when they were packed.
    ids=["no gzip", "no tar", "cut off", "without the program", "a link", "outside"],
)
def test_a_package_that_is_damaged_or_hostile_is_refused(tmp_path: Path, content: bytes) -> None:
    release = kept(tmp_path, content)
    with pytest.raises(errors.PackageRefused):
        read_program(release, tmp_path, tmp_path)
