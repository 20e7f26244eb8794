"""What runs leave behind: kept once, counted right over crashes, bounded, gone with the last."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.artifacts import Artifacts, Quotas

PATIENCE_S = 30
ROOMY = Quotas(file=1 << 20, run=1 << 21, total=1 << 22)
ONE, TWO = "t_one.1", "t_two.1"

# Another daemon in the middle of its work: it says each thing that it was told is kept.
BUSY = """
import anyio, hashlib, random, sys
from pathlib import Path
from microvm_orchestrator.artifacts import Artifacts, Quotas

async def main():
    state, seed = Path(sys.argv[1]), sys.argv[2]
    kept = Artifacts(state / "artifacts", state / "runs", Quotas(1 << 20, 1 << 30, 1 << 30))
    await kept.reconcile({f"t_x.{n}" for n in range(1, 9)})
    print("up", flush=True)
    chance = random.Random(seed)
    while True:
        run = f"t_x.{chance.randint(1, 8)}"
        if chance.random() < 0.1:
            print("forgetting", run, flush=True)
            await kept.forget(run)
            print("forgot", run, flush=True)
        else:
            data = bytes([chance.randint(0, 20)]) * chance.choice([0, 1, 5000, 300_000])
            print("kept", run, await kept.add_bytes(run, data), flush=True)

anyio.run(main)
"""


def opened(state: Path, quotas: Quotas = ROOMY) -> Artifacts:
    return Artifacts(state / "artifacts", state / "runs", quotas)


@pytest.fixture
async def kept(tmp_path: Path) -> Artifacts:
    artifacts = opened(tmp_path)
    await artifacts.reconcile({ONE, TWO})
    return artifacts


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def contents(state: Path) -> dict[str, int]:
    """Give each content with how many names it has, its own among them."""
    found = {path: path.stat() for path in (state / "artifacts/sha256").iterdir()}
    return {path.name: status.st_nlink for path, status in found.items()}


def incoming(state: Path) -> list[Path]:
    return list((state / "artifacts/incoming").iterdir())


async def pieces(*data: bytes) -> AsyncGenerator[bytes]:
    for each in data:
        yield each


async def all_of(artifacts: Artifacts, run_id: str, digest: str) -> bytes:
    async with artifacts.open(run_id, digest) as (size, found):
        data = b"".join([piece async for piece in found])
    assert len(data) == size
    return data


async def test_what_is_kept_comes_back_byte_for_byte_in_whole_and_in_parts(kept: Artifacts) -> None:
    data = random.Random(1).randbytes(700_001)
    digest = await kept.add(ONE, len(data), pieces(data[:3], data[3:], b""))
    assert digest == digest_of(data)
    assert await all_of(kept, ONE, digest) == data
    assert await kept.read(ONE, digest, 5, 10) == data[5:15]
    assert await kept.read(ONE, digest, len(data) - 1, 10) == data[-1:]
    assert await kept.read(ONE, digest, len(data) + 5, 10) == b""
    assert await kept.add_bytes(ONE, b"") == digest_of(b"")
    assert await kept.read(ONE, digest_of(b""), 0, 10) == b""


async def test_a_content_is_there_once_and_goes_with_the_last_run_that_has_it(
    kept: Artifacts, tmp_path: Path
) -> None:
    both, own = await kept.add_bytes(ONE, b"both"), await kept.add_bytes(ONE, b"own")
    assert await kept.add_bytes(ONE, b"both") == await kept.add_bytes(TWO, b"both") == both
    assert sorted(contents(tmp_path).values()) == [2, 3]
    assert (kept.total, await kept.holders(both)) == (7, [ONE, TWO])
    await kept.forget(ONE)
    assert (kept.total, await kept.holders(both)) == (4, [TWO])
    assert not (tmp_path / "runs" / ONE).exists()
    assert await kept.read(TWO, both, 0, 9) == b"both"
    with pytest.raises(errors.NotFound):
        await kept.read(ONE, own, 0, 9)
    await kept.forget(TWO)
    await kept.forget(TWO)
    assert (kept.total, contents(tmp_path)) == (0, {})


async def test_a_run_is_forgotten_with_all_that_its_folder_holds(
    kept: Artifacts, tmp_path: Path
) -> None:
    (tmp_path / "runs" / ONE).mkdir()
    (tmp_path / "runs" / ONE / "output").write_bytes(b"said")
    await kept.forget(ONE)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("run_id", ["../elsewhere.1", "", ".", "t_one", "a/b.1", "t_one.1\n"])
async def test_what_is_no_name_of_a_run_is_no_path_either(kept: Artifacts, run_id: str) -> None:
    for ask in (kept.forget(run_id), kept.add_bytes(run_id, b"x"), kept.read(run_id, "", 0, 1)):
        with pytest.raises(errors.NotFound):
            await ask


@pytest.mark.parametrize("digest", ["", "sha256:../../x", "sha256:" + "A" * 64, "md5:" + "0" * 64])
async def test_what_is_no_digest_is_not_found(kept: Artifacts, digest: str) -> None:
    with pytest.raises(errors.NotFound):
        await kept.read(ONE, digest, 0, 1)
    with pytest.raises(errors.NotFound):
        await kept.holders(digest)


# Quotas


async def test_what_passes_a_quota_is_refused_before_a_byte_is_asked_for(tmp_path: Path) -> None:
    artifacts = opened(tmp_path, Quotas(file=10, run=15, total=25))
    await artifacts.reconcile(())
    asked = False

    async def never() -> AsyncGenerator[bytes]:
        nonlocal asked
        asked = True
        yield b""

    with pytest.raises(errors.TooLarge, match="one file may have 10"):
        await artifacts.add(ONE, 11, never())
    await artifacts.add_bytes(ONE, b"a" * 10)
    with pytest.raises(errors.TooLarge, match="of the 15 of a run 10 are taken"):
        await artifacts.add(ONE, 6, never())
    await artifacts.add_bytes(TWO, b"b" * 10)
    with pytest.raises(errors.TooLarge, match="of the 25 of all runs 20 are taken"):
        await artifacts.add("t_three.1", 6, never())
    assert not asked
    # What is the run's own comes in all the same.
    await artifacts.add_bytes("t_three.1", b"c" * 100, bounded=False)
    await artifacts.forget("t_three.1")
    await artifacts.forget(ONE)
    await artifacts.add_bytes(TWO, b"d" * 5)


async def test_what_is_on_its_way_has_taken_its_room_already(tmp_path: Path) -> None:
    artifacts = opened(tmp_path, Quotas(file=10, run=10, total=15))
    await artifacts.reconcile(())
    come, begun = anyio.Event(), anyio.Event()

    async def slow() -> AsyncGenerator[bytes]:
        begun.set()
        await come.wait()
        yield b"x" * 10

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(artifacts.add, ONE, 10, slow())
            await begun.wait()
            with pytest.raises(errors.TooLarge, match="of all runs"):
                await artifacts.add_bytes(TWO, b"y" * 6)
            await artifacts.add_bytes(TWO, b"y" * 5)
            come.set()
    assert artifacts.total == 15


# What does not come whole


@pytest.mark.parametrize("data", [b"", b"1234", b"123456"])
async def test_a_file_that_is_not_of_its_size_is_refused_and_nothing_of_it_stays(
    kept: Artifacts, tmp_path: Path, data: bytes
) -> None:
    with pytest.raises(errors.ProtocolBroken, match="not of the 5 bytes"):
        await kept.add(ONE, 5, pieces(data))
    assert (contents(tmp_path), incoming(tmp_path), kept.total) == ({}, [], 0)


async def test_of_a_file_that_is_cut_off_nothing_stays(kept: Artifacts, tmp_path: Path) -> None:
    begun = anyio.Event()

    async def endless() -> AsyncGenerator[bytes]:
        yield b"x" * 600_000
        begun.set()
        await anyio.sleep_forever()

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kept.add, ONE, 1 << 20, endless())
            await begun.wait()
            assert len(incoming(tmp_path)) == 1
            tasks.cancel_scope.cancel()
    assert (contents(tmp_path), incoming(tmp_path)) == ({}, [])
    # Nor is its room taken.
    await kept.add_bytes(ONE, b"y" * (1 << 20))


async def test_a_content_that_is_damaged_on_the_disk_is_replaced_by_the_next_that_comes(
    kept: Artifacts, tmp_path: Path
) -> None:
    digest = await kept.add_bytes(ONE, b"whole")
    (content,) = (tmp_path / "artifacts/sha256").iterdir()
    os.truncate(content, 2)
    await kept.add_bytes(TWO, b"whole")
    assert await kept.read(TWO, digest, 0, 9) == b"whole"


# A daemon that is killed


async def test_what_a_killed_daemon_left_is_put_away_by_the_next(
    kept: Artifacts, tmp_path: Path
) -> None:
    digest = await kept.add_bytes(ONE, b"stays")
    await kept.add_bytes("t_gone.1", b"goes")
    (tmp_path / "artifacts/incoming/half").write_bytes(b"ha")
    (tmp_path / "artifacts/sha256" / ("0" * 64)).write_bytes(b"nobody's")
    (tmp_path / "runs/other").mkdir()
    after = opened(tmp_path)
    await after.reconcile({ONE})
    assert await after.read(ONE, digest, 0, 9) == b"stays"
    assert (after.total, list(contents(tmp_path).values())) == (5, [2])
    assert incoming(tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["other", ONE]


async def test_whenever_a_daemon_is_killed_what_it_said_is_kept_is_and_nothing_else(
    tmp_path: Path, *, whole: bool
) -> None:
    known = {f"t_x.{number}" for number in range(1, 9)}
    has: dict[str, set[str]] = {run: set() for run in known}
    chance = random.Random(7)
    for round_ in range(200 if whole else 6):
        unsure = _lived(tmp_path, str(round_), chance.randint(1, 120), has)
        after = opened(tmp_path)
        await after.reconcile(known)
        found = {run: _names(tmp_path, run) for run in known}
        for run in known:
            if run == unsure:  # it was being forgotten, or kept the last thing that was not told
                has[run] &= found[run]
            assert has[run] <= found[run]
            assert len(found[run] - has[run]) <= 1
            for name in found[run]:
                data = (tmp_path / "runs" / run / "kept" / name).read_bytes()
                assert hashlib.sha256(data).hexdigest() == name
        has = found
        there = contents(tmp_path)
        count = {name: sum(name in names for names in found.values()) for name in there}
        assert there == {name: times + 1 for name, times in count.items()}
        assert incoming(tmp_path) == []


def _lived(state: Path, seed: str, acts: int, has: dict[str, set[str]]) -> str | None:
    """Let a daemon live for so many acts, and kill it; note what it said, and what is not sure."""
    unsure: str | None = None
    words = [sys.executable, "-c", BUSY, str(state), seed]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for said, line in enumerate(process.stdout, 1):
            if not line.endswith("\n"):
                break  # it was killed in the middle of the word
            what, *about = line.split()
            if what == "kept":
                has[about[0]].add(about[1].removeprefix("sha256:"))
            elif what == "forgetting":
                unsure = about[0]
            elif what == "forgot":
                has[about[0]].clear()
                unsure = None
            if said == acts:
                process.send_signal(signal.SIGKILL)
    return unsure


def _names(state: Path, run: str) -> set[str]:
    folder = state / "runs" / run / "kept"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# Beside each other


async def test_the_same_content_comes_and_goes_beside_itself_and_none_is_lost(
    kept: Artifacts, tmp_path: Path
) -> None:
    datas = [bytes([number]) * 3000 for number in range(4)]

    async def churn(run_id: str, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(25):
            held = {await kept.add_bytes(run_id, data) for data in chance.sample(datas, 2)}
            for digest in held:
                assert digest_of(await kept.read(run_id, digest, 0, 9999)) == digest
            await kept.forget(run_id)

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(churn, f"t_churn.{number}", number)
    assert (kept.total, contents(tmp_path), incoming(tmp_path)) == (0, {}, [])
