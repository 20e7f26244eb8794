"""The check of registers: against histories known to be right or wrong, and against every order."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import JsonValue, TypeAdapter

from histories import atomic, drawn, op, slowly, with_stale_read
from microvm_orchestrator import errors
from microvm_orchestrator.clusters.history import EventType, Operation
from microvm_orchestrator.clusters.linear import Answer, check_linearizable, explained

# A register begins with nothing, written `_`.
VALID = {
    "nothing": "",
    "one after the other": "w1- r1- w2- r2-",
    "a read beside a write sees what was before": "w1-- \n r_-",
    "or what is written": "w1-- \n r1-",
    # Herlihy and Wing 1990, of registers: the figure with both reads after the first write.
    "reads beside writes see either": "w0-  w1------- \n     r1--  r1-- \n   w0-------",
    # The README of porcupine: the put takes place between the gets.
    "two gets beside a put": "w1---------- \n  r_-- \n       r1--",
    "both orders of writes at once": "w1----  r2- \nw2----  r2-",
    "a compare and set between": "w1-   r2-\n   c12-\n",
    "compare and set one of two": "w1-  r3- \n  c13-- \n  w1----",
    "the lost write is seen late": "w1-    r1- r2-\n  w2?",
    "the lost write is never seen": "w1-    r1- r1-\n  w2?",
    "a lost compare and set is seen": "w1-    r1- r2-\n  c12?",
    "ends where the other begins": "w1-\n  r_-",
}
INVALID = {
    "a stale read": "w1- w2- r1-",
    "a read of what nobody wrote": "w1- r3-",
    # The same place: both gets end before the put does, but the later one sees less.
    "time goes back between two gets": "w1---------- \n  r1-- \n       r_--",
    # The README of knossos: both compare and sets from the same value.
    "two compare and sets of one value": "w1- c12- \n    c13-\n",
    "a lost update": "w0-  c01---  r1-\n     c02---  r2-",
    # As an etcd read from a follower.
    "new, old, new": "w1-  w2-------------- \n       r2- r1-  \n               r2-",
    "what was lost is seen and unseen": "w1-    r2- r1-\n  w2?",
    "a lost compare and set that never fitted": "w1-    r3-\n  c23?",
    "seen before it began": "   w1-\nr1-",
}


@pytest.mark.parametrize("which", VALID)
def test_a_history_that_some_order_explains_is_valid(which: str) -> None:
    history = drawn(VALID[which])
    assert slowly(history)
    assert check_linearizable(history).answer is Answer.VALID


@pytest.mark.parametrize("which", INVALID)
def test_a_history_that_no_order_explains_is_invalid(which: str) -> None:
    history = drawn(INVALID[which])
    assert not slowly(history)
    verdict = check_linearizable(history)
    assert verdict.answer is Answer.INVALID
    assert verdict.counterexample is not None
    assert not slowly(verdict.counterexample.operations)
    assert verdict.counterexample.operation in history


def test_a_counterexample_holds_no_more_than_is_needed() -> None:
    history = with_stale_read(atomic(1, 300, 4), values=3)
    wrong = check_linearizable(history).counterexample
    assert wrong is not None
    assert [(each.f, each.result) for each in wrong.operations] == [
        *(("write", 4), ("write", 5), ("read", 4))
    ]
    assert wrong.operation.f == "read"
    # What was lost may yet take place, so it could be one of those too.
    assert set(wrong.values) == {0, 1, 2, 5}


def test_a_counterexample_is_told_to_a_person() -> None:
    history = [
        op(0, "write", 1, 0, 1_000_000, key="x"),
        op(1, "read", 2, 2_000_000, 3_500_000, key="x"),
        op(2, "write", 7, 2_500_000, 9_000_000, key="x"),
    ]
    wrong = check_linearizable(history).counterexample
    assert wrong is not None
    assert explained(wrong) == [
        'no order explains what these operations of register "x" gave:',
        "  2.000 to 3.500 ms: process 1 read 2  <- could not end so",
        "by then it could only have been 1, 7",
    ]


def test_registers_of_different_keys_are_apart() -> None:
    right = [op(0, "write", 1, 0, 1, key="a"), op(1, "read", None, 5, 6, key=["b", 2])]
    assert check_linearizable(right).answer is Answer.VALID
    wrong = check_linearizable([*right, op(1, "read", 2, 8, 9, key="a")])
    assert (wrong.answer, wrong.keys, wrong.operations) == (Answer.INVALID, 2, 3)
    assert wrong.counterexample is not None
    assert wrong.counterexample.key == "a"


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), (None, 0), ("1", 1), ([], {})])
def test_values_that_only_look_alike_are_apart(one: object, other: object) -> None:
    history = [op(0, "write", _json(one), 0, 1), op(0, "read", _json(other), 2, 3)]
    assert check_linearizable(history).answer is Answer.INVALID
    assert (
        check_linearizable([op(0, "read", _json(one), 0, 1)], initial=_json(one)).answer == "valid"
    )


def _json(value: object) -> JsonValue:
    return TypeAdapter(JsonValue).validate_python(value)


def test_whoever_breaks_things_is_no_client_and_others_must_use_a_register() -> None:
    nemesis = Operation("nemesis", "partition", None, None, EventType.INFO, 0, None)
    assert check_linearizable([nemesis]).operations == 0
    with pytest.raises(errors.InvalidInput, match="append"):
        check_linearizable([op(0, "append", 1, 0, 1)])
    with pytest.raises(errors.InvalidInput, match="cas"):
        check_linearizable([op(0, "cas", 1, 0, 1)])
    with pytest.raises(errors.InvalidInput, match="before it began"):
        check_linearizable([op(0, "write", 1, 5, 1)])


def test_where_the_bound_is_reached_the_answer_is_unknown_and_other_keys_are_checked() -> None:
    # Each of the writes may be anywhere among the others.
    hard = [op(process, "write", process, 0, 100) for process in range(18)]
    hard += [op(20, "read", process, 200 + process, 200 + process) for process in (3, 5)]
    verdict = check_linearizable(hard, max_work=1000)
    assert verdict.answer is Answer.UNKNOWN
    assert verdict.work <= 1001
    wrong = [op(0, "write", 1, 0, 1, key="b"), op(0, "read", 2, 2, 3, key="b")]
    assert check_linearizable(hard + wrong, max_work=1000).answer is Answer.INVALID


def test_many_lost_operations_do_not_drown_the_check() -> None:
    lost = [op(100 + number, "write", number % 3, number) for number in range(200)]
    history = atomic(5, 500, 5, lost=0.0)
    verdict = check_linearizable([*history, *lost], max_work=200_000)
    assert verdict.answer is Answer.VALID


@pytest.mark.parametrize("seed", range(20))
def test_what_a_register_did_is_valid_and_a_stale_read_in_it_is_not(seed: int) -> None:
    history = atomic(seed, 400, processes=2 + seed % 7, values=2 + seed % 4)
    assert check_linearizable(history).answer is Answer.VALID
    assert check_linearizable(with_stale_read(history, 9)).answer is Answer.INVALID


f_and_value = st.one_of(
    st.tuples(st.just("read"), st.sampled_from([None, 0, 1, 2])),
    st.tuples(st.just("write"), st.sampled_from([0, 1, 2])),
    st.tuples(
        st.just("cas"),
        st.lists(st.sampled_from([0, 1, 2]), min_size=2, max_size=2),
    ),
)
one_operation = st.tuples(
    f_and_value,
    st.integers(0, 12),
    st.integers(0, 6),
    st.sampled_from(["ok"] * 4 + ["info", "fail"]),
)


@given(st.lists(one_operation, max_size=6))
def test_it_says_what_trying_every_order_says(
    asked: list[tuple[tuple[str, int | list[int] | None], int, int, str]],
) -> None:
    history = [
        op(
            process,
            f,
            list(value) if isinstance(value, list) else value,
            start,
            None if how == "info" else start + length,
            outcome=EventType(how),
        )
        for process, ((f, value), start, length, how) in enumerate(asked)
    ]
    verdict = check_linearizable(history)
    assert (verdict.answer is Answer.VALID) == slowly(history)
    if verdict.counterexample is not None:
        assert not slowly(verdict.counterexample.operations)


@given(st.integers(0, 10_000), st.integers(1, 7))
def test_a_real_register_is_valid_by_every_order_too(seed: int, operations: int) -> None:
    history = atomic(seed, operations, 3, lost=0.3)
    assume(len(history) <= 7)
    assert slowly(history)
    assert check_linearizable(history).answer is Answer.VALID
