"""Scrubbing and metering, wherever the pieces of an answer are cut; and rules for hosts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.config import Egress as Settings
from microvm_orchestrator.egress.policy import Policy, parse_rule
from microvm_orchestrator.egress.scrub import Scrubber
from microvm_orchestrator.egress.usage import AnswerReader, Tokens

SECRET = "abab-ababc"
STARTED = {
    "type": "message_start",
    "message": {
        "model": "m",
        "usage": {
            "input_tokens": 10,
            "output_tokens": 1,
            "cache_creation_input_tokens": 20,
            "cache_read_input_tokens": 30,
        },
    },
}
ENDED = {"type": "message_delta", "usage": {"output_tokens": 40}}


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def events(*told: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in told)


def read(data: bytes, places: list[int], *, stream: bool = True) -> AnswerReader:
    reader = AnswerReader(stream=stream)
    for piece in cut(data, places):
        reader.feed(piece)
    return reader


@given(
    st.lists(st.sampled_from([SECRET, SECRET[:4], SECRET[5:], "a", "ab", "c", "-"]), max_size=30),
    st.lists(st.integers(0, 400), max_size=20),
)
def test_the_secret_is_gone_and_nothing_else_however_it_is_cut(
    parts: list[str], places: list[int]
) -> None:
    data = "".join(parts).encode()
    scrubber = Scrubber(SECRET)
    out = b"".join(scrubber.feed(piece) for piece in cut(data, places)) + scrubber.rest()
    assert out == data.replace(SECRET.encode(), b"x" * len(SECRET))


def test_what_cannot_begin_the_secret_is_not_held_back() -> None:
    scrubber = Scrubber(SECRET)
    assert scrubber.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert scrubber.feed(b"data: aba") == b"data: "
    assert scrubber.feed(b"x") == b"abax"


@given(st.lists(st.integers(0, 2000), max_size=30))
def test_usage_is_read_however_the_stream_is_cut(places: list[int]) -> None:
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": '"usage"'}}
    reader = read(events(STARTED, text, {"type": "ping"}, ENDED), places)
    assert reader.finish(0) == Tokens(10, 40, 20, 30)
    assert reader.model == "m"


@given(st.lists(st.integers(0, 2000), max_size=30))
def test_usage_is_read_however_a_whole_answer_is_cut(places: list[int]) -> None:
    told = {"type": "message", "model": "m", "usage": {"input_tokens": 3, "output_tokens": 4}}
    assert read(json.dumps(told).encode(), places, stream=False).finish(0) == Tokens(3, 4)


@given(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=10), st.booleans())
def test_no_bytes_break_the_reader(data: bytes, places: list[int], stream: bool) -> None:
    tokens = read(data, places, stream=stream).finish(len(data))
    assert tokens.input >= 0
    assert tokens.output >= 0


def test_the_last_that_is_said_holds() -> None:
    more = {"type": "message_delta", "usage": {"input_tokens": 11, "output_tokens": 50}}
    assert read(events(STARTED, ENDED, more), []).finish(0) == Tokens(11, 50, 20, 30)


def test_an_answer_that_failed_before_it_began_took_nothing() -> None:
    failed = {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}
    assert read(events(failed), []).finish(4000) == Tokens()
    # One that had begun took what it had said.
    begun = read(events(STARTED, failed), []).finish(4000)
    assert begun == Tokens(10, 1, 20, 30, estimated=True)


IN_BACKGROUND = {"model": "m", "background": True, "status": "queued", "usage": None}


@pytest.mark.parametrize(
    "told",
    [
        IN_BACKGROUND,
        # As some that speak like OpenAI have it.
        {"model": "m", "status": "queued"},
        {"model": "m", "status": "in_progress"},
    ],
)
def test_what_goes_on_in_the_background_counts_as_the_longest_answer(told: dict[str, Any]) -> None:
    data = json.dumps({"object": "response", "max_output_tokens": 16, **told}).encode()
    expected = Tokens(100, 128_000, estimated=True)
    assert read(data, [], stream=False).finish(400) == expected


@given(st.lists(st.integers(0, 2000), max_size=10))
def test_who_hangs_up_does_not_end_what_goes_on_in_the_background(places: list[int]) -> None:
    begun = {"type": "response.created", "response": IN_BACKGROUND}
    text = {"type": "response.output_text.delta", "delta": "It was "}
    assert read(events(begun, text), places).finish(400) == Tokens(100, 128_000, estimated=True)
    usage = {"input_tokens": 90, "output_tokens": 7}
    whole = {**IN_BACKGROUND, "status": "completed", "usage": usage}
    ended = {"type": "response.completed", "response": whole}
    assert read(events(begun, text, ended), places).finish(400) == Tokens(90, 7)
    failed = {"type": "response.failed", "response": {**IN_BACKGROUND, "status": "failed"}}
    assert read(events(begun, text, failed), places).finish(400) == Tokens(100, 2, estimated=True)


def test_what_is_not_in_the_background_counts_as_far_as_it_came() -> None:
    response = {"model": "m", "background": False, "status": "in_progress", "usage": None}
    begun = {"type": "response.created", "response": response}
    text = {"type": "response.output_text.delta", "delta": "It was "}
    assert read(events(begun, text), []).finish(400) == Tokens(100, 2, estimated=True)


def test_a_model_cannot_speak_for_the_api() -> None:
    said = events(STARTED, ENDED).decode()
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": said * 100}}
    assert read(events(STARTED, text, ENDED), []).finish(0) == Tokens(10, 40, 20, 30)


def test_a_line_without_an_end_is_not_kept() -> None:
    reader = AnswerReader(stream=True)
    for _ in range(40):
        reader.feed(b"x" * (1 << 20))
    reader.feed(b"\n" + events(STARTED, ENDED))
    assert len(reader._line) < 100  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - memory is what it is about
    assert reader.finish(0) == Tokens(10, 40, 20, 30)


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "*.", "a b", "https://a.example", "a.example/x", "a.example:x", "*.[::1]"),
        *("a.*.b", "käse.example", "a..b", f"{'a.' * 127}com", "a.example:443:1", "[::1", "@a"),
    ],
)
def test_what_is_no_rule_for_hosts_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidInput, match="no rule for hosts"):
        parse_rule(text)


def test_a_rule_is_written_as_it_is_read() -> None:
    for text in ("a.example", "*.a.example:8443", "[2001:db8::1]:22", "192.0.2.1"):
        assert str(parse_rule(text)) == text


def test_what_the_operator_allows_and_what_a_run_asks_for_are_put_together() -> None:
    settings = Settings(hosts=("a.example",), private_networks=("10.0.0.0/8",))
    policy = Policy.of(settings, ["b.example:22", "a.example"])
    assert [str(rule) for rule in policy.hosts] == ["a.example", "b.example:22"]
    with pytest.raises(errors.InvalidInput, match="is no network"):
        Policy.of(Settings(private_networks=("10.0.0.1/8",)))
    with pytest.raises(errors.TooLarge):
        Policy.of(settings, ["a.example"] * 1000)
