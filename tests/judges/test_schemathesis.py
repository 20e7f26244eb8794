"""Schemathesis reads our OpenAPI document and tries to catch the REST front end in a lie."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from daemon import running_daemon
from judges.tools import judged

if TYPE_CHECKING:
    from daemon import Daemon

pytestmark = pytest.mark.anyio

COMMAND = Path(sys.executable).with_name("schemathesis")
RULES = Path(__file__).with_name("schemathesis.toml")
SEED = 20_260_728
# For each operation and phase.
EXAMPLES = 2
EXAMPLES_WHOLE = 60
# What they take are lists of what `POST /v1/tasks` takes one of. To make those wrong in each of
# their thousands of ways takes longer than any other operation.
LISTS_OF_TASKS = ("POST /v1/graphs", "POST /v1/tasks/{task_id}/extend")


async def admin_token(daemon: Daemon) -> str:
    transport = httpx2.AsyncHTTPTransport(uds=str(daemon.socket))
    async with httpx2.AsyncClient(transport=transport, base_url="http://local") as client:
        answer = await client.post("/v1/tokens", json={"name": "judge", "role": "admin"})
        return answer.json()["token"]


async def test_rest_answers_as_its_document_says(tmp_path: Path, whole: bool) -> None:
    hooks = {"allow_private_targets": True}
    with running_daemon(tmp_path, tcp={"listen": "127.0.0.1:0"}, webhooks=hooks) as daemon:
        verdict = await judged(
            [
                *(str(COMMAND), "--config-file", str(RULES), "--no-color", "run"),
                f"http://{daemon.tcp}/openapi.json",
                *("--header", f"Authorization: Bearer {await admin_token(daemon)}"),
                *("--seed", str(SEED), "--phases", "coverage,fuzzing,stateful"),
                *("--max-examples", str(EXAMPLES_WHOLE if whole else EXAMPLES)),
                "--continue-on-failure",
                *(
                    word
                    for name in LISTS_OF_TASKS
                    if not whole
                    for word in ("--exclude-name", name)
                ),
            ],
            cwd=tmp_path,
        )
        log = daemon.log.read_text()

    assert verdict.status == 0, verdict.said
    assert '"level": "error"' not in log
