"""The frames and records of the channel, by themselves."""

from __future__ import annotations

import ast
import contextlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_orchestrator.machine import wire

NAMES = st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=1, max_size=32)
VALUES = (
    st.integers(-(2**63), 2**63 - 1)
    | st.binary(max_size=200)
    | st.lists(st.binary(max_size=50), max_size=20)
)
RECORDS = st.dictionaries(NAMES, VALUES, max_size=20)


@st.composite
def frames(draw: st.DrawFn) -> wire.Frame:
    kind = draw(st.sampled_from(sorted(wire.LIMITS)))
    least, most = wire.LIMITS[kind]
    payload = draw(st.binary(min_size=least, max_size=min(most, 300)))
    alone = kind in (wire.HELLO, wire.EVENT, wire.FORGET)
    stream = 0 if alone else draw(st.integers(1, wire.MAX_STREAM))
    channel = draw(st.integers(0, 2)) if kind == wire.DATA else 0
    return kind, stream, channel, payload


def written(sent: list[wire.Frame]) -> bytes:
    return b"".join(
        wire.frame(kind, stream, payload, channel) for kind, stream, channel, payload in sent
    )


def read(reader: wire.FrameReader, data: bytes, cuts: list[int]) -> list[wire.Frame]:
    """Give a reader `data` in pieces."""
    seen: list[wire.Frame] = []
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for begin, end in itertools.pairwise(edges):
        reader.buffer += data[begin:end]
        seen += reader.frames()
    return seen


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(record: wire.Fields) -> None:
    assert wire.decode(wire.encode(record)) == record


@given(RECORDS, st.data())
def test_a_record_that_was_changed_is_another_or_broken(
    record: wire.Fields, data: st.DataObject
) -> None:
    payload = bytearray(wire.encode(record))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for garbled in (bytes(payload), bytes(payload[:cut]), bytes(payload) + b"\0"):
        with contextlib.suppress(wire.Broken):
            assert wire.encode(wire.decode(garbled)) == garbled


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_broken(payload: bytes) -> None:
    with contextlib.suppress(wire.Broken):
        wire.decode(payload)


@given(st.lists(frames(), max_size=8), st.lists(st.integers(0), max_size=10))
def test_frames_are_read_as_they_were_written_however_they_are_cut(
    sent: list[wire.Frame], cuts: list[int]
) -> None:
    reader = wire.FrameReader()
    assert read(reader, written(sent), cuts) == sent
    assert not reader.buffer


@given(st.binary(max_size=500), st.lists(st.integers(0), max_size=5))
def test_any_bytes_are_frames_or_broken_and_a_reader_never_holds_more_than_it_got(
    data: bytes, cuts: list[int]
) -> None:
    reader = wire.FrameReader()
    with contextlib.suppress(wire.Broken):
        read(reader, data, cuts)
    assert len(reader.buffer) <= len(data)


@given(st.lists(frames(), max_size=4), frames(), st.integers(1), st.integers(0, 40))
def test_a_frame_that_a_marker_cuts_off_is_never_acted_upon(
    sent: list[wire.Frame], last: wire.Frame, cut: int, arrived: int
) -> None:
    """However little of the marker has arrived, and however much the cut frame still lacked."""
    whole = written([last])
    cut_off = whole[: cut % len(whole)]
    reader = wire.FrameReader()
    marker = wire.preamble(bytes(16), 1, 1)
    with contextlib.suppress(wire.Broken):
        assert read(reader, written(sent) + cut_off + marker[:arrived], []) == sent
    reader.buffer += marker[arrived:]
    assert wire.MARKER in reader.buffer


@given(
    st.lists(st.sampled_from([wire.MARKER, wire.MARKER[:5], wire.MARKER[5:], b"x"]), max_size=9),
    st.lists(st.integers(1, wire.MAX_STREAM), min_size=1, max_size=5),
)
def test_a_payload_that_was_cut_holds_no_marker_and_loses_nothing(
    parts: list[bytes], streams: list[int]
) -> None:
    payload = b"".join(parts)
    pieces = wire.without_marker(payload)
    assert b"".join(pieces) == payload
    stream = b"".join(
        wire.frame(wire.DATA, number, piece) for number in streams for piece in pieces if piece
    )
    assert wire.MARKER not in stream


@given(st.lists(frames(), max_size=8))
def test_the_marker_lies_in_a_payload_or_nowhere(sent: list[wire.Frame]) -> None:
    assert (wire.MARKER in written(sent)) == any(wire.MARKER in frame[3] for frame in sent)
    assert all(byte >= 0x80 for byte in wire.MARKER)
    assert max(wire.LIMITS) < 0x80


@pytest.mark.parametrize(
    "frame",
    [
        (0, 1, 0, b""),
        (99, 1, 0, b""),
        (wire.END, 0, 0, b""),
        (wire.HELLO, 1, 0, b"x"),
        (wire.END, 1, 0, b"x"),
        (wire.END, 1, 1, b""),
        (wire.DATA, 1, 0, b""),
        (wire.DATA, 1, 3, b"x"),
        (wire.CREDIT, 1, 0, b"xxx"),
        *[
            (kind, int(kind not in (wire.HELLO, wire.EVENT, wire.FORGET)), 0, bytes(most + 1))
            for kind, (_, most) in wire.LIMITS.items()
        ],
    ],
)
def test_a_header_that_breaks_a_rule_is_refused_before_its_payload_arrives(
    frame: wire.Frame,
) -> None:
    reader = wire.FrameReader()
    with pytest.raises(wire.Broken):
        read(reader, written([frame])[: wire.HEADER_BYTES + 1], [])


ASKS: dict[str, Callable[[wire.Fields], object]] = {
    "a digit": lambda fields: wire.integer(fields, "x", 0, 9),
    "two bytes": lambda fields: wire.blob(fields, "x", 2),
    "two items": lambda fields: wire.blobs(fields, "x", 2),
}


@pytest.mark.parametrize(
    ("ask", "value"),
    [
        ("a digit", None),
        ("a digit", 10),
        ("a digit", -1),
        ("a digit", b"1"),
        ("two bytes", b"123"),
        ("two bytes", [b"1"]),
        ("two items", [b"1"] * 3),
        ("two items", 1),
    ],
)
def test_a_field_of_another_type_or_size_is_refused(
    ask: str, value: int | bytes | list[bytes] | None
) -> None:
    with pytest.raises(wire.Broken):
        ASKS[ask]({} if value is None else {"x": value})


PROTOCOL = (Path(__file__).parents[3] / "guest" / "protocol.md").read_text()


def test_the_text_of_the_protocol_names_the_frames_that_there_are() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z]+) \|[^|]*\|([^|]*)\|", PROTOCOL, re.MULTILINE)
    said = {int(kind): (name, int(re.findall(r"\d+", size)[-1])) for kind, name, size in rows}
    limits = {kind: wire.LIMITS[kind][1] for kind in (2, 3, 4, 8, 9, 10, 11, 1)}
    assert {kind: name for kind, (name, _) in said.items()} == wire.NAMES
    assert {kind: said[kind][1] for kind in limits} == limits


@pytest.mark.parametrize(
    "figure",
    [wire.MARKER.hex(), wire.WINDOW, wire.MAX_STREAMS, wire.cost(b""), f"version {wire.VERSION}"],
)
def test_the_text_of_the_protocol_names_its_figures(figure: object) -> None:
    assert str(figure) in PROTOCOL


def test_what_the_guest_runs_too_takes_nothing_but_struct() -> None:
    tree = ast.parse(Path(str(wire.__file__)).read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in top] == [
        "from __future__ import annotations",
        "import struct",
    ]
