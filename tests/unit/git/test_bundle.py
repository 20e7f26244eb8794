from __future__ import annotations

from pathlib import Path

import pytest

from git_repos import clone_of_bundle, extend, fetch_bundle, long_history, mirrored, raw, sample
from microvm_orchestrator import errors
from microvm_orchestrator.git import bundle
from microvm_orchestrator.git.names import Oid

REF = "refs/heads/task"


def objects_in(path: Path) -> int:
    """Count the objects of a bundle's pack."""
    content = path.read_bytes()
    return int.from_bytes(content[content.index(b"\n\nPACK") + 10 :][:4])


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
async def test_a_guest_makes_the_same_commits_of_what_it_is_sent(
    tmp_path: Path, object_format: str
) -> None:
    repo = sample(tmp_path / "repo", object_format=object_format)
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    to = tmp_path / "sent"
    written = await bundle.write(mirror, to, want=repo.oid(), ref=REF, have=[])
    assert (written.commits, written.size) == (2, to.stat().st_size)
    guest = clone_of_bundle(tmp_path / "guest", to, object_format=object_format)
    assert guest.oid() == repo.oid()
    guest.git("fsck", "--strict")
    assert (guest.path / "README").read_text() == "two\n"


async def test_only_what_the_guest_lacks_is_sent(tmp_path: Path) -> None:
    repo = long_history(tmp_path / "repo.git", 2000)
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    have = repo.oid("main")
    await bundle.write(mirror, tmp_path / "first", want=have, ref=REF, have=[])
    assert objects_in(tmp_path / "first") == repo.objects()
    guest = clone_of_bundle(tmp_path / "guest", tmp_path / "first")
    extend(repo, 2000, 3)
    await mirror.refresh(repo.path)
    want = repo.oid("main")
    written = await bundle.write(mirror, tmp_path / "next", want=want, ref=REF, have=[have])
    assert written.commits == 3
    assert objects_in(tmp_path / "next") == 3 * 4
    fetch_bundle(guest, tmp_path / "next")
    assert guest.oid("FETCH_HEAD") == want


async def test_that_nothing_is_to_be_sent_is_told_and_makes_no_file(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    to = tmp_path / "sent"
    for want in (repo.oid(), repo.oid("other")):
        written = await bundle.write(mirror, to, want=want, ref=REF, have=[repo.oid()])
        assert written == bundle.Written(0, 0)
    assert not to.exists()


async def test_no_history_but_that_of_the_commit_leaves(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("switch", "--quiet", "--create", "secret", "other")
    secret = repo.commit({"secret": "do not tell\n"}, "secret")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    await mirror.tidy()  # which makes an index by which git packs otherwise
    for number, have in enumerate(([], [repo.oid("other")], [secret])):
        to = tmp_path / f"sent{number}"
        await bundle.write(mirror, to, want=repo.oid("main"), ref=REF, have=have)
        guest = sample(tmp_path / f"guest{number}")
        if secret in have:
            raw(guest.path, "fetch", "--quiet", repo.path, "secret")
        held = guest.objects()
        fetch_bundle(guest, to)
        assert guest.oid("FETCH_HEAD") == repo.oid("main")
        assert guest.objects() == held
        assert secret not in have or b"secret" in raw(
            guest.path, "log", "-1", "--format=%s", secret
        )
        if secret not in have:
            with pytest.raises(AssertionError):
                guest.git("cat-file", "-e", secret)
        assert b"upstream" not in to.read_bytes()


async def test_what_the_guest_says_it_has_and_nobody_knows_is_passed_over(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    have = [Oid("1" * 40), repo.oid("HEAD:README"), repo.oid("other"), repo.oid("other")]
    written = await bundle.write(mirror, tmp_path / "sent", want=repo.oid(), ref=REF, have=have)
    assert written.commits == 1
    head = (tmp_path / "sent").read_bytes().partition(b"\n\n")[0].decode()
    lines = ["# v2 git bundle", f"-{repo.oid('other')} ", f"{repo.oid()} {REF}"]
    assert head.splitlines() == lines


async def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    (tmp_path / "sent").write_text("mine")
    with pytest.raises(FileExistsError):
        await bundle.write(mirror, tmp_path / "sent", want=repo.oid(), ref=REF, have=[])
    assert (tmp_path / "sent").read_text() == "mine"


async def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    [pack] = mirror.path.glob("objects/pack/*.pack")
    content = pack.read_bytes()
    for path in mirror.path.glob("objects/pack/*"):
        path.unlink()
    raw(mirror.path, "unpack-objects", "-q", stdin=content)
    lost = repo.oid("HEAD:README")
    (mirror.path / "objects" / lost[:2] / lost[2:]).unlink()
    with pytest.raises(errors.CommandFailed, match=lost):
        await bundle.write(mirror, tmp_path / "sent", want=repo.oid(), ref=REF, have=[])
    assert not (tmp_path / "sent").exists()


async def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    with pytest.raises(errors.InvalidInput):
        await bundle.write(mirror, tmp_path / "sent", want=repo.oid(), ref="a\nb", have=[])
    with pytest.raises(errors.InvalidInput):
        await bundle.write(mirror, tmp_path / "sent", want=Oid("--all"), ref=REF, have=[])
    assert not (tmp_path / "sent").exists()
