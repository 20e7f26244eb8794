"""What a request to a model costs on its way through an endpoint, above one that goes there itself.

Client, endpoint and scripted API share this process, so the processor's time is that of all three.
The request has the size of those that Claude Code sends.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bench.figures import median_ms, p95_ms, tell
from egressing import ASKED, HEADERS, listening, outlet
from model_api import open_model_api, say

# What Claude Code sends with its tools and its system prompt.
ASKED_BYTES = 50_000
AIM_MS = 5.0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("way", ["unix socket", "port"])
async def test_a_request_to_a_model(tmp_path: Path, way: str, *, stream: bool, whole: bool) -> None:
    asked = {**ASKED, "stream": stream, "system": "x" * ASKED_BYTES}
    async with (
        open_model_api([say("A line of text. " * 20)]) as api,
        outlet(tmp_path, api=api.url) as out,
        listening(out.egress.serve) as port,
        httpx2.AsyncClient(base_url=api.url, headers=HEADERS) as direct,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as by_port,
    ):
        through = out.http if way == "unix socket" else by_port
        ours: list[float] = []
        floor: list[float] = []
        for number in range(510 if whole else 20):
            for client, taken in ((through, ours), (direct, floor)):
                taken.append(await _timed(client, asked))
            if number == 9:  # connections are open and code is warm
                ours.clear()
                floor.clear()
            api.requests.clear()
    added = median_ms(ours) - median_ms(floor)
    tell(
        f"model request through egress, {way}, {'stream' if stream else 'whole'}",
        f"p50 {median_ms(ours):.2f} p95 {p95_ms(ours):.2f} ms",
        floor=f"p50 {median_ms(floor):.2f} p95 {p95_ms(floor):.2f} ms, direct",
        ratio=f"{median_ms(ours) / median_ms(floor):.2f}, {added:+.2f} ms",
        aim=f"+{AIM_MS:g} ms or less",
    )


async def _timed(client: httpx2.AsyncClient, asked: dict[str, Any]) -> float:
    began = time.perf_counter()
    answer = await client.post("/v1/messages?beta=true", json=asked)
    took = time.perf_counter() - began
    assert answer.status_code == 200
    return took
