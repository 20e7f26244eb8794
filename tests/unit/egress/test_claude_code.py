"""The real Claude Code against an endpoint: it works with a placeholder, and stops at a budget."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from egressing import KEY, TOKEN, keys_in, listening, outlet
from judges.tools import CLAUDE
from microvm_orchestrator.egress.budget import Budget
from microvm_orchestrator.egress.credentials import Kind
from microvm_orchestrator.egress.guest import PLACEHOLDER, environment
from model_api import open_model_api, say, use

if TYPE_CHECKING:
    from pathlib import Path

# Longer than it takes on a busy machine.
LONG_S = 120
# No account, no telemetry, no updates. No file is told from which a key could be taken.
ALONE = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_MAX_RETRIES": "3",
    "IS_SANDBOX": "1",
    "PATH": os.environ["PATH"],
}


@dataclass(frozen=True)
class Ended:
    """How a run of Claude Code ended."""

    status: int
    result: dict[str, Any]
    said: str


async def claude(folder: Path, prompt: str, url: str) -> Ended:
    """Run it in a folder that is its home, with what a guest is told and nothing else."""
    await anyio.Path(folder).mkdir()
    words = ["-p", prompt, "--output-format", "stream-json", "--verbose"]
    env = {**ALONE, **environment(url, proxied=True), "HOME": str(folder), "TMPDIR": str(folder)}
    with anyio.fail_after(LONG_S):
        done = await anyio.run_process(
            [str(CLAUDE), *words, "--dangerously-skip-permissions"],
            stdin=subprocess.DEVNULL,
            check=False,
            cwd=folder,
            env=env,
        )
    said = done.stdout.decode() + done.stderr.decode()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    results = [line for line in lines if line.get("type") == "result"]
    assert results, said
    return Ended(done.returncode, results[-1], said)


@pytest.mark.parametrize(
    ("kind", "value"), [(Kind.ANTHROPIC_API_KEY, KEY), (Kind.ANTHROPIC_OAUTH, TOKEN)]
)
async def test_it_does_its_work_and_never_has_the_key(
    tmp_path: Path, kind: Kind, value: str
) -> None:
    script = [
        use("Write", file_path=str(tmp_path / "home" / "made.txt"), content="by the agent"),
        use("Bash", command="env; cat made.txt", description="Look"),
        say("It is done."),
    ]
    kept = await keys_in(tmp_path, work=(kind, value))
    async with (
        open_model_api(script, keys=[value]) as api,
        outlet(tmp_path, api=api.url, credentials=kept) as out,
        listening(out.egress.serve) as port,
    ):
        ended = await claude(tmp_path / "home", "Make it", f"http://127.0.0.1:{port}")
        turns = len(api.conversation)
        spent = out.egress.spent
        last = json.dumps(api.conversation[-1].body)
    assert (ended.status, ended.result["is_error"]) == (0, False), ended.said
    assert ended.result["result"] == "It is done."
    assert turns == 3
    assert (spent.tokens.input, spent.tokens.output) == (3000, 150)
    assert spent.requests >= 3
    # The environment it printed went to the model with the placeholder in it.
    assert f"ANTHROPIC_API_KEY={PLACEHOLDER}" in last
    assert value not in last
    assert value not in ended.said
    assert not [path for path in _files(tmp_path / "home") if value.encode() in path.read_bytes()]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_at_the_budget_it_stops_within_one_turn_without_trying_again(
    tmp_path: Path,
) -> None:
    script = [use("Bash", command="true", description="Wait")] * 50
    async with (
        open_model_api(script) as api,
        outlet(tmp_path, api=api.url, budget=Budget(tokens=2500)) as out,
        listening(out.egress.serve) as port,
    ):
        ended = await claude(tmp_path / "home", "Go on", f"http://127.0.0.1:{port}")
        turns = len(api.conversation)
        refused = [each for each in [await out.told() for _ in range(out.waiting)] if each.refused]
    assert ended.result["is_error"] is True
    assert "budget_exhausted" in ended.said
    assert turns == 2
    assert [each.measure for each in out.exhausted] == ["tokens"]
    assert len(refused) == 1
