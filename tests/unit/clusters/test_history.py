"""Histories: recorded as they happen, read back, and written for others."""

from __future__ import annotations

import contextlib
import json
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.edn import (
    history_from_edn,
    history_to_edn,
    read_edn,
    to_edn,
)
from microvm_orchestrator.clusters.history import (
    EventType,
    HistoryEvent,
    Recorder,
    operations,
    read,
    recorded,
    to_json,
)
from microvm_orchestrator.clusters.linear import Answer, check_linearizable

# As the README of Knossos has it, and as Jepsen's store writes it.
KNOSSOS = """\
[{:process 0, :type :invoke, :f :write, :value 0}
 {:process 0, :type :ok, :f :write, :value 0}
 {:process 1 :type :invoke :f :read :value nil} ; comes after
 {:process 1 :type :ok :f :read :value 0}]
"""
JEPSEN = """\
#jepsen.history.Op{:index 0, :time 3291485317, :type :invoke, :process :nemesis, :f :start}
{:index 1, :time 3291485318, :type :invoke, :process 0, :f :cas, :value [7 [0 1]], :link nil}
{:index 2, :time 3291485319, :type :info, :process :nemesis, :f :start, :value {:n1 #{"n2" "n3"}}}
{:index 3, :time 3291485320, :type :info, :process 0, :f :cas, :value [7 [0 1]], :error "timed out"}
"""


def recorder(path: Path) -> Recorder:
    ticks = count(1000, 10)
    return Recorder(path, clock=lambda: next(ticks))


def test_what_is_recorded_is_read_back_as_operations(tmp_path: Path) -> None:
    path = tmp_path / "history"
    ticks = count(1000, 10)
    with recorded(path, clock=lambda: next(ticks)) as history:
        history.invoke(0, "write", 1, key="x")
        history.invoke(1, "read", key="x")
        history.ok(0, 1)
        history.ok(1, 1)
        history.invoke(0, "cas", [1, 2], key="x")
        history.fail(0, [1, 2], error="not there")
        history.invoke(0, "write", 3)
        history.info(0, error="timed out")
        history.invoke("nemesis", "partition")
        history.invoke(1, "read")
    events = read(path)
    assert [(event.process, event.type, event.time) for event in events[:4]] == [
        *((0, "invoke", 10), (1, "invoke", 20), (0, "ok", 30), (1, "ok", 40))
    ]
    found = operations(events)
    assert [(each.f, each.outcome, each.start, each.end) for each in found] == [
        *(("write", "ok", 10, 30), ("read", "ok", 20, 40), ("cas", "fail", 50, 60)),
        *(("write", "info", 70, None), ("partition", "info", 90, None)),
        ("read", "info", 100, None),
    ]
    assert (found[1].value, found[1].result, found[1].key) == (None, 1, "x")
    assert check_linearizable(found).answer is Answer.VALID
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_history_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "history"
    recorder(path).close()
    with pytest.raises(errors.AlreadyExists):
        recorder(path)


def test_a_process_does_one_thing_at_a_time(tmp_path: Path) -> None:
    history = recorder(tmp_path / "history")
    with pytest.raises(errors.StateForbids, match="at nothing"):
        history.ok(0)
    history.invoke(0, "read")
    with pytest.raises(errors.StateForbids, match="at read already"):
        history.invoke(0, "write", 1)
    history.close()


def test_what_is_no_event_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = recorder(path)
    with pytest.raises(errors.InvalidInput, match="f: "):
        history.invoke(0, "two words")
    with pytest.raises(errors.InvalidInput, match="process"):
        history.invoke(-1, "read")
    history.invoke(0, "read")
    history.close()
    assert len(read(path)) == 1


def test_the_last_line_of_who_died_is_left_out_and_any_other_must_be_whole(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = recorder(path)
    history.invoke(0, "read")
    history.close()
    with path.open("a") as file:
        file.write('{"process":0,"ty')
    assert len(read(path)) == 1
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(errors.InvalidInput, match="line 2"):
        read(path)
    with pytest.raises(errors.NotFound):
        read(tmp_path / "none")


@pytest.mark.parametrize(
    ("types", "why"),
    [
        ([("invoke", "read"), ("invoke", "write")], "while it is at read"),
        ([("ok", "read")], "never began"),
        ([("invoke", "read"), ("ok", "write")], "but is at read"),
    ],
)
def test_events_that_make_no_operations_are_refused(types: list[tuple[str, str]], why: str) -> None:
    events = [HistoryEvent(0, EventType(kind), f, None, 0) for kind, f in types]
    with pytest.raises(errors.InvalidInput, match=why):
        operations(events)


def test_a_history_of_knossos_is_read_and_checked() -> None:
    events = [
        HistoryEvent(event.process, event.type, event.f, event.value, time)
        for time, event in enumerate(history_from_edn(KNOSSOS.replace("value", "time 0, :value")))
    ]
    assert check_linearizable(operations(events)).answer is Answer.VALID


def test_a_history_without_times_has_them_by_its_order() -> None:
    events = history_from_edn(KNOSSOS)
    assert [event.time for event in events] == [0, 1, 2, 3]
    assert check_linearizable(operations(events)).answer is Answer.VALID


def test_a_history_of_jepsen_is_read_with_its_keys_and_whoever_breaks_things() -> None:
    start, cas, told, lost = history_from_edn(JEPSEN, keyed=True)
    assert (start.process, told.value) == ("nemesis", {"n1": ["n2", "n3"]})
    assert (cas.key, cas.value, lost.type, lost.error) == (7, [0, 1], "info", "timed out")
    assert len(operations([start, cas, told, lost])) == 2


def test_a_history_is_written_as_jepsen_writes_it() -> None:
    events = [
        HistoryEvent(0, EventType.INVOKE, "cas", [1, 2], 5, key="x"),
        HistoryEvent("nemesis", EventType.INFO, "start", None, 6, error='a "b"'),
    ]
    assert history_to_edn(events) == (
        '{:index 0, :process 0, :type :invoke, :f :cas, :value ["x" [1 2]], :time 5}\n'
        "{:index 1, :process :nemesis, :type :info, :f :start, :value nil, :time 6,"
        ' :error "a \\"b\\""}\n'
    )
    assert json.loads(to_json(events[0])) == {
        "process": 0,
        "type": "invoke",
        "f": "cas",
        "value": [1, 2],
        "time": 5,
        "key": "x",
    }


@pytest.mark.parametrize(
    "text",
    [*('"', "{:a}", "[", "]", "{]", "(}", '"\\q"', "[" * 100), "{:process 0}", "7", "{:f 1 :f 2}"],
)
def test_what_is_no_history_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidInput):
        history_from_edn(text)


numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@given(values)
def test_a_value_written_as_edn_is_read_back(value: JsonValue) -> None:
    (again,) = read_edn(to_edn(value))
    assert (again, repr(again)) == (value, repr(value))


@given(st.text(st.sampled_from('{}[]()#":;\\ a1.eNM,\n/'), max_size=60))
def test_nothing_breaks_the_reader_of_edn(text: str) -> None:
    with contextlib.suppress(errors.InvalidInput):
        read_edn(text)
