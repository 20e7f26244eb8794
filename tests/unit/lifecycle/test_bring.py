"""Artifacts of earlier runs as files of later ones: by digest or by name, and of one's own only."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import storing
from guests import behind_socket
from microvm_orchestrator import errors
from microvm_orchestrator.artifacts import Artifacts, Quotas
from microvm_orchestrator.lifecycle.bring import find, put_files
from microvm_orchestrator.lifecycle.run import Run
from microvm_orchestrator.model.artifact import Artifact
from microvm_orchestrator.model.records import SYSTEM, Record
from microvm_orchestrator.model.run import RUN, InputFile, RunRecord, RunSpec
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import Address, Ref, Store
from microvm_orchestrator.store.sqlite import SqliteStore

ALICE, BOB = storing.actor("alice"), storing.actor("bob")


@dataclass(frozen=True)
class House:
    """What a daemon has of runs."""

    store: Store
    artifacts: Artifacts

    async def run(self, key: str, by: Any = ALICE, *files: InputFile, **left: bytes) -> Run:
        """Submit a task and write its run down, with what it has left behind."""
        spec = RunSpec(kind="command", argv=["true"], files=list(files))
        await storing.submit(self.store, storing.task(key, run=spec), by=by)
        task = await storing.get(self.store, key, by=SYSTEM)
        run_id = f"{task.task_id}.{task.attempt}"
        artifacts = [
            Artifact(
                name=name.replace("__", "/"),
                size=len(data),
                digest=await self.artifacts.add_bytes(run_id, data),
            )
            for name, data in left.items()
        ]
        record = RunRecord(
            run_id=run_id,
            task_id=task.task_id,
            owner=task.owner,
            artifacts=artifacts,
            started_at=moment(0),
        )
        await self.store.save(Record(RUN, run_id, record.model_dump(mode="json")), SYSTEM)
        ref = Ref(Address(task.task_id), 1, "host")
        return Run(task, spec, ref, record, 1, self.store)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    state = tmp_path / "state"
    state.mkdir()
    artifacts = Artifacts(state / "artifacts", state / "runs", Quotas(1 << 20, 1 << 20, 1 << 20))
    await artifacts.reconcile(())
    store = SqliteStore(state / "store.db")
    async with store.opened():
        yield House(store, artifacts)


async def test_an_artifact_is_found_by_the_task_that_left_it_and_by_its_digest(
    house: House,
) -> None:
    maker = await house.run("maker", ALICE, dist__lib=b"made")
    user = await house.run("user")
    (made,) = maker.record.artifacts
    there = (maker.record.run_id, made.digest)
    assert await find(user, house.artifacts, "maker/dist/lib") == there
    assert await find(user, house.artifacts, f"{maker.task.task_id}/dist/lib") == there
    assert await find(user, house.artifacts, made.digest) == there


@pytest.mark.parametrize(
    "reference", ["maker/other", "nobody/lib", "sha256:" + "0" * 64, "maker/", "maker"]
)
async def test_what_no_run_has_left_behind_is_not_found(house: House, reference: str) -> None:
    await house.run("maker", ALICE, lib=b"made")
    with pytest.raises(errors.NotFound):
        await find(await house.run("user"), house.artifacts, reference)


async def test_what_somebody_elses_run_has_left_behind_is_not_found(house: House) -> None:
    maker = await house.run("maker", ALICE, lib=b"made")
    thief = await house.run("thief", BOB)
    digest = maker.record.artifacts[0].digest
    for reference in ("maker/lib", f"{maker.task.task_id}/lib", digest):
        with pytest.raises(errors.NotFound):
            await find(thief, house.artifacts, reference)
    # Unless a run of theirs has the same.
    own = await house.run("own", BOB, same=b"made")
    assert await find(thief, house.artifacts, digest) == (own.record.run_id, digest)


async def test_files_lie_in_the_guest_as_they_were_given(house: House, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    await house.run("maker", ALICE, lib=data)
    place = tmp_path / "in"
    files = [
        InputFile(path=f"{place}/deep/lib", artifact="maker/lib", mode=0o755),
        InputFile(path=f"{place}/text", text="é\n"),
        InputFile(path=f"{place}/raw", base64="AP8="),
    ]
    user = await house.run("user", ALICE, *files)
    async with behind_socket(tmp_path) as guest, guest.shell() as shell:
        await put_files(user, house.artifacts, shell)
    assert (place / "deep/lib").read_bytes() == data
    assert (place / "deep/lib").stat().st_mode & 0o777 == 0o755
    assert (place / "text").read_text("utf-8") == "é\n"
    assert (place / "raw").read_bytes() == b"\x00\xff"


@pytest.mark.parametrize(
    "content",
    [{}, {"text": "", "artifact": "a/b"}, {"text": "", "base64": ""}, {"artifact": "/x"}],
)
def test_a_file_has_one_content(content: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        InputFile.model_validate({"path": "x", **content})
