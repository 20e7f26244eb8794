from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from microvm_orchestrator import errors
from microvm_orchestrator.images.packages import (
    Package,
    check_names,
    open_index,
    place,
    read_announced,
    read_plan,
)
from microvm_orchestrator.images.progress import Stage, silent
from microvm_orchestrator.images.unpack import merged, unpack
from unit.images.debs import Repository, deb_of, folder, link, member, open_repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from microvm_orchestrator.images.tree import Tree

pytestmark = pytest.mark.anyio

PLAN = """\
NOTE: This is only a simulation!
Inst gcc-12-base (12.2.0-14+deb12u1 Debian:12.15/oldstable [amd64])
Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) []
Inst libgcc-s1:amd64 [12.2.0-13] (12.2.0-14+deb12u1 Debian:12.15/oldstable [amd64])
Inst git (1:2.39.5-0+deb12u3 Debian:12.15/oldstable, Debian-Security:12 [amd64])
Conf git (1:2.39.5-0+deb12u3 Debian:12.15/oldstable [amd64])
"""
SHA = "637a85ddd6247fab13bdd0592f2f39aff04ce4dbf0655d3ab553ac359a38ce6f"
ANNOUNCED = (
    "'http://mirror/pool/main/g/git/git_2.39.5-0%2bdeb12u3_amd64.deb'"
    f" git_1%3a2.39.5-0+deb12u3_amd64.deb 7264380 SHA256:{SHA}\n"
)
VERSION = "1:2.39.5-0+deb12u3"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """Give a place that this test's apt takes packages from, and no other."""
    with open_repository(tmp_path / "repository") as repository:
        monkeypatch.setenv("APT_CONFIG", str(repository.config))
        yield repository


def test_a_plan_is_read_with_its_versions() -> None:
    assert read_plan(PLAN) == {
        "gcc-12-base": "12.2.0-14+deb12u1",
        "libc6": "2.36-9+deb12u14",
        "libgcc-s1": "12.2.0-14+deb12u1",
        "git": VERSION,
    }


def test_what_is_announced_is_read_with_its_checksum() -> None:
    assert read_announced(ANNOUNCED, {"git": VERSION}) == [Package("git", VERSION, SHA, 7264380)]


@pytest.mark.parametrize("text", ["", ANNOUNCED.replace("SHA256", "MD5Sum"), ANNOUNCED[:-10]])
def test_a_package_without_a_good_checksum_is_refused(text: str) -> None:
    with pytest.raises(errors.PackageRefused, match="git"):
        read_announced(text, {"git": VERSION})


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-y",
        "--config-file=x",
        "git=1.0",
        "git-",
        "git/sid",
        "Git",
        "a b",
        "^git",
        "*",
        "./x.deb",
    ],
)
def test_what_apt_would_take_for_something_else_is_no_name(name: str) -> None:
    with pytest.raises(errors.PackageUnknown):
        check_names([name])


async def test_a_package_comes_with_what_it_depends_on_and_not_with_recommendations(
    tmp_path: Path, repository: Repository
) -> None:
    repository.add("tool", "1.0", "Depends: library (>= 2)", "Recommends: manual")
    repository.add("library", "2:2.1-3")
    repository.add("manual", "1")
    index = await open_index(tmp_path / "apt", silent)
    assert await index.resolve(["tool"]) == {"tool": "1.0", "library": "2:2.1-3"}


async def test_nothing_asked_for_is_nothing_needed(tmp_path: Path, repository: Repository) -> None:
    repository.add("tool", "1.0")
    index = await open_index(tmp_path / "apt", silent)
    assert await index.resolve([]) == {}


async def test_a_package_that_nobody_has_is_told_by_its_name(
    tmp_path: Path, repository: Repository
) -> None:
    repository.add("tool", "1.0")
    index = await open_index(tmp_path / "apt", silent)
    with pytest.raises(errors.PackageUnknown, match="no source of this host has a package toool"):
        await index.resolve(["tool", "toool"])


async def test_a_package_that_cannot_be_had_is_told_with_what_apt_says(
    tmp_path: Path, repository: Repository
) -> None:
    repository.add("tool", "1.0", "Depends: gone")
    index = await open_index(tmp_path / "apt", silent)
    with pytest.raises(errors.PackageUnknown, match="tool : Depends: gone"):
        await index.resolve(["tool"])


async def test_files_are_fetched_once_and_kept_by_their_content(
    tmp_path: Path, repository: Repository
) -> None:
    content = repository.add("tool", "1:1.0")
    index = await open_index(tmp_path / "apt", silent)
    packages = await index.describe(await index.resolve(["tool"]))
    told: list[tuple[Stage, int, int]] = []

    def note(stage: Stage, done: int, total: int) -> None:
        told.append((stage, done, total))

    for _ in range(2):
        await index.fetch(packages, tmp_path / "kept", note)
    assert place(tmp_path / "kept", packages[0]).read_bytes() == content
    assert told[0] == (Stage.DOWNLOAD, 0, len(content))
    assert (Stage.DOWNLOAD, len(content), len(content)) in told
    assert told[-1] == (Stage.DOWNLOAD, 0, 0)
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".deb"]


async def test_a_kept_file_that_was_damaged_is_fetched_anew(
    tmp_path: Path, repository: Repository
) -> None:
    content = repository.add("tool", "1.0")
    index = await open_index(tmp_path / "apt", silent)
    packages = await index.describe(await index.resolve(["tool"]))
    await index.fetch(packages, tmp_path / "kept", silent)
    place(tmp_path / "kept", packages[0]).write_bytes(content[:-1])
    await index.fetch(packages, tmp_path / "kept", silent)
    assert place(tmp_path / "kept", packages[0]).read_bytes() == content


async def test_a_file_that_is_not_what_the_index_says_is_not_kept(
    tmp_path: Path, repository: Repository
) -> None:
    repository.add("tool", "1.0")
    index = await open_index(tmp_path / "apt", silent)
    packages = await index.describe(await index.resolve(["tool"]))
    repository.damage("tool", "1.0")
    with pytest.raises((errors.CommandFailed, errors.PackageRefused)):
        await index.fetch(packages, tmp_path / "kept", silent)
    assert list((tmp_path / "kept").iterdir()) == []


async def test_a_young_index_is_used_again_and_an_old_one_is_not(
    tmp_path: Path, repository: Repository
) -> None:
    repository.add("tool", "1.0")
    await open_index(tmp_path / "apt", silent)
    repository.add("tool", "2.0")
    young = await open_index(tmp_path / "apt", silent)
    assert await young.resolve(["tool"]) == {"tool": "1.0"}
    fresh = await open_index(tmp_path / "apt", silent, fresh_s=0)
    assert await fresh.resolve(["tool"]) == {"tool": "2.0"}
    # Who began with the older one is not disturbed.
    assert await young.describe({"tool": "1.0"})


async def test_an_index_from_the_future_is_not_believed(
    tmp_path: Path, repository: Repository
) -> None:
    repository.add("tool", "1.0")
    await open_index(tmp_path / "apt", silent)
    repository.add("tool", "2.0")
    later = time.time() + 1000
    os.utime((tmp_path / "apt" / "current").resolve(), (later, later))
    index = await open_index(tmp_path / "apt", silent)
    assert await index.resolve(["tool"]) == {"tool": "2.0"}


async def test_where_sources_are_out_of_reach_an_old_index_serves_and_the_log_tells(
    tmp_path: Path, repository: Repository
) -> None:
    repository.add("tool", "1.0")
    await open_index(tmp_path / "apt", silent)
    (repository.path / "Packages").unlink()
    with capture_logs() as said:
        index = await open_index(tmp_path / "apt", silent, fresh_s=0)
    assert await index.resolve(["tool"]) == {"tool": "1.0"}
    assert [line["event"] for line in said] == ["package_index_is_old"]


async def test_without_any_index_sources_out_of_reach_are_an_error_and_nothing_is_left(
    tmp_path: Path, repository: Repository
) -> None:
    (repository.path / "Packages").unlink()
    with pytest.raises(errors.CommandFailed):
        await open_index(tmp_path / "apt", silent)
    assert list((tmp_path / "apt").iterdir()) == []


async def test_hooks_of_the_hosts_apt_do_not_run(tmp_path: Path, repository: Repository) -> None:
    marker = tmp_path / "ran"
    with repository.config.open("a") as config:
        for hook in ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke-Success"):
            config.write(f"{hook} {{ {json.dumps(f'touch {marker}')}; }};\n")
    repository.add("tool", "1.0")
    await open_index(tmp_path / "apt", silent)
    assert not marker.exists()


async def unpacked(tmp_path: Path, *debs: bytes) -> list[Tree]:
    kept, scratch = tmp_path / "kept", tmp_path / "scratch"
    kept.mkdir()
    scratch.mkdir()
    packages = [Package(f"tool{n}", "1.0", SHA, len(deb)) for n, deb in enumerate(debs)]
    for package, deb in zip(packages, debs, strict=True):
        place(kept, package).write_bytes(deb)
    return await unpack([(package, bool) for package in packages], kept, scratch, silent)


async def test_packages_are_taken_apart_and_laid_over_one_another(tmp_path: Path) -> None:
    trees = await unpacked(
        tmp_path,
        deb_of(folder("./usr/"), member("./usr/a", b"first")),
        deb_of(folder("./usr/"), member("./bin/b", b"second"), link("./usr/c", "a")),
    )
    tree = merged(trees)
    assert [path for path, _ in tree] == ["usr", "usr/a", "usr/bin", "usr/bin/b", "usr/c"]
    assert tree.file("usr/bin/b").read() == b"second"


async def test_a_hostile_package_is_refused_by_its_name_and_touches_nothing(
    tmp_path: Path,
) -> None:
    with pytest.raises(errors.PackageRefused, match="tool1"):
        await unpacked(
            tmp_path,
            deb_of(member("./usr/a", b"good")),
            deb_of(member("../../escaped", b"bad")),
        )
    assert not any("escaped" in name for _, _, names in os.walk(tmp_path) for name in names)


async def test_what_is_no_package_is_told_by_dpkg(tmp_path: Path) -> None:
    with pytest.raises(errors.CommandFailed, match="dpkg-deb"):
        await unpacked(tmp_path, b"no package at all")
