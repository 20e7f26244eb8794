"""Files of agents and what they say, on guests that only look so: their programs are not there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from calling import House, house
from machines import LONG_S, fake_program, publish_no_image
from microvm_orchestrator import errors, places
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.lifecycle.output import OutputFile
from microvm_orchestrator.machine.shell import Channel
from microvm_orchestrator.model.records import SYSTEM

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio

SAYS = {
    "type": "assistant",
    "message": {"id": "m", "model": "x", "content": [{"type": "text", "text": "Hm."}]},
}
DOES = {
    "type": "assistant",
    "message": {
        "id": "m",
        "model": "x",
        "content": [{"type": "tool_use", "name": "Bash", "input": {"command": "make"}}],
    },
}


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncGenerator[House]:
    program = str(fake_program(tmp_path))
    publish_no_image(ImageStore(tmp_path / places.IMAGES), "embedded")
    async with house(tmp_path, machines={"qemu": program}) as kept:
        spawned = await kept.ask("agent_spawn", name="ada", wait_s=LONG_S)
        assert spawned["state"] == "succeeded", spawned
        yield kept
        await kept.ask("agent_end", agent="ada", force=True)


async def test_files_are_written_listed_and_read_by_the_name_of_their_agent(
    kept: House, tmp_path: Path
) -> None:
    folder = tmp_path / "w"
    written = await kept.ask(
        "agent_file_put", agent="ada", path=f"{folder}/deep/a b\n.txt", content="é", mode="0600"
    )
    assert written["size"] == 2
    (folder / "link").symlink_to("deep")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / "// is no name".replace("/", "_")).write_bytes(b"12345")
    listed = await kept.ask("agent_file_list", agent="ada", path=str(folder))
    assert listed["files"] == [
        {"path": "__ is no name", "size": 5},
        {"path": "deep/a b\n.txt", "size": 2},
    ]
    assert (listed["folder"], listed["truncated"]) == (str(folder), False)
    some = await kept.ask("agent_file_list", agent="ada", path=str(folder), limit=1)
    assert (len(some["files"]), some["truncated"]) == (1, True)
    read = await kept.ask("agent_file_get", agent="ada", path=f"{folder}/deep/a b\n.txt")
    assert (read["content"], read["mode"]) == ("é", "0600")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/a/..", "\0", ""])
async def test_a_path_that_leads_upwards_or_nowhere_is_refused(kept: House, path: str) -> None:
    for call, more in (("agent_file_get", {}), ("agent_file_put", {"content": "x"})):
        with pytest.raises(errors.InvalidInput):
            await kept.ask(call, agent="ada", path=path, **more)
    with pytest.raises(errors.InvalidInput):
        await kept.ask("agent_file_list", agent="ada", path=path)


async def test_what_is_not_there_is_said(kept: House, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        await kept.ask("agent_file_list", agent="ada", path=str(tmp_path / "none"))
    with pytest.raises(errors.NotFound):
        await kept.ask("agent_file_get", agent="ada", path=str(tmp_path / "none"))
    with pytest.raises(errors.NotFound):
        await kept.ask("agent_file_list", agent="eve")


async def test_one_that_was_suspended_is_started_to_look_at_its_files(
    kept: House, tmp_path: Path
) -> None:
    suspended = await kept.ask("agent_suspend", agent="ada", wait_s=LONG_S)
    assert suspended["result"]["state"] == "suspended", suspended
    listed = await kept.ask("agent_file_list", agent="ada", path=str(tmp_path / "images"))
    assert listed["truncated"] is False
    assert (await kept.ask("agent_get", agent="ada"))["agent"]["state"] == "idle"


async def followed(kept: House, cursor: str | None) -> tuple[list[dict[str, Any]], str]:
    """Hear until nothing more has come."""
    pieces: list[dict[str, Any]] = []
    while True:
        told = await kept.ask("agent_follow", agent="ada", cursor=cursor)
        if not told["pieces"]:
            assert not told["ended"]
            return pieces, told["cursor"]
        pieces, cursor = pieces + told["pieces"], told["cursor"]


async def test_what_an_agent_says_is_heard_with_its_messages_from_where_one_was(
    kept: House,
) -> None:
    assert await followed(kept, None) == ([], "begin")
    first = await kept.ask("agent_send", agent="ada", text="one", wait_s=LONG_S)
    second = await kept.ask("agent_send", agent="ada", text="two", wait_s=LONG_S)
    message = await kept.service.host.agents.message(first["message_id"], SYSTEM)
    path = kept.service.host.agents.output(message)
    await anyio.Path(path).unlink(missing_ok=True)
    file = OutputFile(path)
    line = json.dumps(SAYS).encode() + b"\n"
    for data in (line[:20], line[20:], b"no record\n" + json.dumps(DOES).encode() + b"\n"):
        file.add(Channel.STDOUT, data)
    file.add(Channel.STDERR, b"of no matter")
    file.close()
    pieces, cursor = await followed(kept, "begin")
    told = [(each["message_id"], each["kind"], each["text"]) for each in pieces]
    one, two = first["message_id"], second["message_id"]
    assert told == [
        (one, "message", "one"),
        (one, "says", "Hm."),
        (one, "does", "Bash: make"),
        (one, "answer", ""),
        (two, "message", "two"),
        (two, "answer", ""),
    ]
    assert (pieces[3]["state"], pieces[3]["error"]) == ("failed", first["error"])
    # From now on; and from where one was.
    assert await followed(kept, None) == ([], f"{two}@over")
    assert await followed(kept, cursor) == ([], f"{two}@over")
    assert [each["kind"] for each in (await followed(kept, f"{one}@0"))[0]] == [
        *("says", "does", "answer", "message", "answer")
    ]


@pytest.mark.parametrize("cursor", ["x", "a_1.msg_1@0", "../x@0", "begin@0"])
async def test_a_cursor_of_something_else_is_refused(kept: House, cursor: str) -> None:
    with pytest.raises(errors.InvalidInput):
        await kept.ask("agent_follow", agent="ada", cursor=cursor)
