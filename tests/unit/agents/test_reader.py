"""What every reader bears: any bytes, in any pieces, without growing."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from microvm_orchestrator.agents.drivers import DRIVERS
from microvm_orchestrator.agents.drivers.base import AgentTask, Said, Unread
from microvm_orchestrator.agents.drivers.program import ProgramReader
from microvm_orchestrator.agents.drivers.stream import (
    MAX_CONTAINERS,
    MAX_LINE_BYTES,
    MAX_TEXT,
    Lines,
    mend,
    one_line,
    tidy,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from microvm_orchestrator.agents.drivers.base import Driver, Ended, Event, Reader

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.jsonl"))
TASKS = [AgentTask("x"), AgentTask("x", schema={"type": "object"})]
READERS: list[Callable[[], Reader]] = [
    *(lambda d=driver, t=task: d.reader(t) for driver in DRIVERS.values() for task in TASKS),
    ProgramReader,
]
# What the three programs call their records and what is in them, in any combination.
# fmt: off
WORDS = st.sampled_from([
    "type", "subtype", "system", "init", "api_retry", "assistant", "user", "result",
    "message", "content", "text", "tool_use", "name", "input", "id", "is_error",
    "terminal_reason", "completed", "api_error", "usage", "input_tokens", "errors",
    "structured_output", "session_id", "thread.started", "turn.started", "turn.completed",
    "turn.failed", "item.started", "item.completed", "item", "agent_message",
    "command_execution", "file_change", "mcp_tool_call", "changes", "path", "arguments",
    "error", "thread_id", "step_start", "step_finish", "part", "tool", "state", "reason",
    "stop", "tokens", "cache", "read", "cost", "data", "statusCode", "sessionID",
    "num_turns", "total_cost_usd", "mcp_servers", "status", "attempt", "error_status",
    "Reconnecting...", "1/5", "status", "529",
])
# fmt: on
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WORDS
    | st.text(max_size=20)
    | st.just("\x1b[2J\x00")
)
VALUES: st.SearchStrategy[JsonValue] = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=30,
)


def record(kind: str, rest: dict[str, JsonValue]) -> bytes:
    return json.dumps({**rest, "type": kind}).encode()


RECORDS = st.builds(record, WORDS, st.dictionaries(WORDS, VALUES, max_size=8))
LINES = st.one_of(RECORDS, VALUES.map(lambda value: json.dumps(value).encode()), st.binary())
STREAMS = st.lists(LINES, max_size=12).map(b"\n".join) | st.binary(max_size=200)


def read(make: Callable[[], Reader], pieces: list[bytes]) -> tuple[list[Event], Ended]:
    reader = make()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events, reader.finish(0)


@pytest.mark.parametrize("make", READERS)
@given(stream=STREAMS, cuts=st.lists(st.integers(0, 2000)))
def test_it_does_not_matter_where_the_pieces_of_a_stream_end(
    make: Callable[[], Reader], stream: bytes, cuts: list[int]
) -> None:
    at = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(at)]
    assert read(make, pieces) == read(make, [stream])


@pytest.mark.parametrize("make", READERS)
@given(stream=STREAMS, code=st.none() | st.integers(0, 255), signal=st.none() | st.integers(1, 64))
def test_whatever_a_guest_says_is_read_to_an_end_that_fits_the_exit(
    make: Callable[[], Reader], stream: bytes, code: int | None, signal: int | None
) -> None:
    reader = make()
    reader.feed(stream)
    ended = reader.finish(code, signal, stderr=stream)

    assert ended.success == (ended.error is None)
    if ended.success:
        assert (code, signal) == (0, None)
    for text in (ended.summary, ended.session_id or "", ended.error.message if ended.error else ""):
        assert len(text) <= MAX_TEXT
        text.encode()
        assert not set(text) & {"\x1b", "\0"}
    json.dumps(ended.structured_output, allow_nan=False).encode()


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_recorded_stream_reads_the_same_in_pieces_of_any_size(path: Path, size: int) -> None:
    driver = DRIVERS[path.stem.partition("-")[0]]
    stream = path.read_bytes()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]

    whole = read(lambda: driver.reader(TASKS[0]), [stream])
    assert read(lambda: driver.reader(TASKS[0]), pieces) == whole
    assert whole[1].unread == 0


@pytest.mark.parametrize("make", READERS)
def test_a_line_without_an_end_takes_no_more_memory_than_the_longest_line(
    make: Callable[[], Reader],
) -> None:
    reader = make()
    piece = b'{"type":' + b"[" * 65_528
    tracemalloc.start()
    try:
        for _ in range(2000):
            reader.feed(piece)
        reader.finish(None, 9)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_LINE_BYTES


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 900_000,
        b'{"type":' * 90_000,
        b'{"type":"x","input":' + b"[],".join([b"["] + [b""] * MAX_CONTAINERS) + b"[]]}",
        b'{"type":"x","n":' + b"9" * 100_000 + b"}",
        b'{"type":"result","result":"' + b"a" * MAX_LINE_BYTES + b'"}',
        b"null",
        b'{"no":"type"}',
        b'{"type":7}',
        b"Error: something",
    ],
    ids=["lists", "objects", "many", "number", "long", "null", "typeless", "number-type", "words"],
)
@pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
def test_a_line_that_is_no_record_is_told_and_counted_and_the_next_is_read(
    driver: Driver, line: bytes
) -> None:
    reader = driver.reader(TASKS[0])

    (event,) = reader.feed(line + b"\n")
    assert isinstance(event, Unread)
    assert len(event.text) <= 2000
    assert reader.feed(b'{"type":"of no interest"}\n') == []
    assert reader.finish(0).unread == 1


def test_half_of_a_character_costs_that_character_and_not_the_record() -> None:
    reader = DRIVERS["claude"].reader(TASKS[0])
    content = rb'[{"type":"text","text":"a \ud83d b \\ud83d c \ud83d\ude00 ' + b"\xff" + rb'"}]'
    events = reader.feed(b'{"type":"assistant","message":{"id":"m","content":' + content + b"}}\n")
    assert events == [Said("a \ufffd b \\ud83d c \U0001f600 \ufffd")]


@given(st.binary())
def test_mending_a_line_leaves_text_behind(line: bytes) -> None:
    assert mend(line).decode() == mend(mend(line)).decode()


@given(st.text(), st.integers(2, 50))
def test_a_tidied_text_is_short_and_acts_on_no_terminal(text: str, limit: int) -> None:
    for made in (tidy(text, limit), one_line(text, limit)):
        assert len(made) <= limit
        assert all(char in "\t\n" or char.isprintable() or ord(char) > 0x9F for char in made)
        made.encode()


@given(st.binary(), st.integers(1, 20))
def test_lines_are_those_of_the_stream_each_cut_at_the_limit(data: bytes, limit: int) -> None:
    lines = Lines(limit)
    found = list(lines.feed(data))
    rest = lines.rest()
    whole = data.split(b"\n")
    expected = [(line[:limit], len(line) > limit) for line in whole]
    assert [*found, rest or (b"", False)] == expected
