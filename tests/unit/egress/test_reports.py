"""Reports of a guest on its own run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from egressing import outlet
from microvm_orchestrator import errors
from microvm_orchestrator.egress.reports import REPORT_MOST, Report

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_report_reaches_the_owner_as_it_was_said(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = [
        {"kind": "started"},
        {"kind": "progress", "message": "half of it", "fraction": 0.5},
        {"kind": "heartbeat"},
        {"kind": "result", "data": {"answer": [42, None, "ä"]}},
        {"kind": "reply", "message": "yes"},
    ]
    async with outlet(tmp_path) as out:
        for each in told:
            answer = await out.http.post("/report", json=each)
            assert (answer.status_code, answer.content) == (204, b"")
        assert out.reports == [Report(**each) for each in told]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"kind": "other"}', 400),
        (b'{"kind": "progress", "run_id": "another"}', 400),
        (b'{"kind": "progress", "fraction": 2}', 400),
        (b'{"kind": "progress", "fraction": NaN}', 400),
        (b'{"kind": "result", "data": Infinity}', 400),
        (b'{"kind": "result", "data": 1e999}', 400),
        (b'{"kind": "result", "data": "\\ud800"}', 400),
        (b'{"kind": "progress", "message": "\\ud800"}', 400),
        (b'{"kind": "progress", "message": "\xff"}', 400),
        (b'{"kind": "result", "data": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", 400),
        (b'{"kind": "result", "data": ' + b"[" * 100 + b"]" * 100 + b"}", 400),
        (b'{"kind": "progress", "message": "' + b"x" * 20_000 + b'"}', 400),
        (b'{"kind": "result", "data": "' + b"x" * REPORT_MOST + b'"}', 413),
    ],
)
async def test_what_is_no_report_is_refused(tmp_path: Path, body: bytes, status: int) -> None:
    async with outlet(tmp_path) as out:
        answer = await out.http.post("/report", content=body)
        assert answer.status_code == status
        assert len(answer.content) < 1000
        assert out.reports == []


async def test_reports_are_posted_and_only_where_somebody_listens(tmp_path: Path) -> None:
    async with outlet(tmp_path) as out:
        assert (await out.http.get("/report")).status_code == 405
    async with outlet(tmp_path, on_report=None) as out:
        assert (await out.http.post("/report", json={"kind": "started"})).status_code == 404


async def test_a_flood_of_reports_is_stemmed(tmp_path: Path) -> None:
    async with outlet(tmp_path) as out:
        statuses = [
            (await out.http.post("/report", json={"kind": "heartbeat"})).status_code
            for _ in range(400)
        ]
        assert set(statuses) == {204, 429}
        assert statuses[:100] == [204] * 100
        assert len(out.reports) == statuses.count(204)


async def test_an_owner_that_cannot_take_a_report_asks_for_it_again(tmp_path: Path) -> None:
    async def on_report(_: Report) -> None:
        raise errors.StoreFull("the disk under the store is full")

    async with outlet(tmp_path, on_report=on_report) as out:
        answer = await out.http.post("/report", json={"kind": "started"})
    assert answer.status_code == 503
    assert "disk" not in answer.text
