"""SIGKILL of the daemon while agents are talked to: each message is heard once, and in its order.

The real Claude Code lives in two machines and goes on while the daemon is away. What it has heard
is read from what it asks its model: the whole conversation comes with every request. It asks by
way of the daemon, and may give up when that breaks off too often: such a turn has failed, by that
name, and was heard all the same.
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import hosted
from bench.figures import tell
from claude_image import Model, claude_image, scripted_model
from judges.tools import CLAUDE
from model_api import say
from system.agents import HOME, answer_of, let_in
from system.living import furnish, staged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from system.living import Stage

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code is not installed: make judges"),
]

KILLS = 50
NAMES = ("ada", "bob")
# No more than these wait for an agent: one turn takes longer than most lives of the daemon.
WAITING_MOST = 4


@pytest.fixture
def model() -> Iterator[Model]:
    anyio.run(claude_image)
    with scripted_model() as model:
        yield model


def test_whenever_the_daemon_is_killed_each_message_is_heard_once_and_in_order(
    model: Model, tmp_path: Path, seed: str
) -> None:
    state = tmp_path / "s"
    furnish(state)
    moments = random.Random(seed)
    sent: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    with staged(state, egress=model.settings) as stage:
        let_in(stage)
        for name in NAMES:
            stage.done("agent_spawn", name=name, **HOME)
    for _ in range(KILLS):
        with staged(state, egress=model.settings) as stage:
            for name in NAMES:
                if _waiting(stage, name) < WAITING_MOST:
                    sent[name].append(_send(stage, model, name, len(sent[name])))
            time.sleep(moments.uniform(0.0, 8.0))  # the fault's random moment
            stage.daemon.kill()
    with staged(state, egress=model.settings) as stage:
        gave_up = 0
        for name in NAMES:
            gave_up += _look(stage, model, name, sent[name])
            stage.ask("agent_end", agent=name)
        stage.clear()
    assert hosted.left(state) == []
    tell("daemon killed while agents were talked to", f"{KILLS} times")
    tell("  messages heard once and in order", str(sum(map(len, sent.values()))))
    tell("  of them turns in which the program gave up on its model", str(gave_up))


def _send(stage: Stage, model: Model, name: str, number: int) -> dict[str, Any]:
    text = f"{name} hears {number}."
    model.scripts[text] = [say(f"{name} answers {number}.")]
    return stage.ask("agent_send", agent=name, text=text, wait_s=0)


def _waiting(stage: Stage, name: str) -> int:
    said = stage.ask("agent_output", agent=name, limit=200)["items"]
    return sum(each["state"] in {"queued", "delivered"} for each in said)


def _look(stage: Stage, model: Model, name: str, sent: list[dict[str, Any]]) -> int:
    """See that each message was heard once and in order; in how many turns a program gave up."""
    answers = [answer_of(stage, each) for each in sent]
    gave_up = [each for each in answers if each["state"] == "failed"]
    assert {each["error"]["code"] for each in gave_up} <= {"model-failed"}, gave_up
    assert len(gave_up) < len(sent) / 10, gave_up
    for number, each in enumerate(answers):
        assert each in gave_up or each["answer"] == f"{name} answers {number}.", each
    assert [
        each["message_id"] for each in stage.ask("agent_output", agent=name, limit=200)["items"]
    ] == [each["message_id"] for each in sent]
    last = f"{name} hears {len(sent) - 1}."
    heard = [json.dumps(each.entries) for each in model.api.conversation]
    [*_, told] = [each for each in heard if last in each]
    places = [told.index(f"{name} hears {number}.") for number in range(len(sent))]
    assert places == sorted(places)
    assert [told.count(f"{name} hears {number}.") for number in range(len(sent))] == [1] * len(sent)
    return len(gave_up)
