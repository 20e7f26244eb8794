from __future__ import annotations

import pytest

from microvm_orchestrator.execs.log import Log
from microvm_orchestrator.machine.shell import Channel, Output

OUT, ERR = Channel.STDOUT, Channel.STDERR


def said(*pieces: tuple[Channel, bytes], cap: int = 100) -> Log:
    log = Log(cap)
    for channel, data in pieces:
        log.add(Output(channel, data, log.end))
    return log


def test_pieces_come_back_in_order_and_cut_at_the_offset_and_the_limit() -> None:
    log = said((OUT, b"one"), (ERR, b"two"), (OUT, b"three"))
    pieces, end = log.since(1, 7)
    assert [(p.channel, p.data, p.offset) for p in pieces] == [
        (OUT, b"ne", 1),
        (ERR, b"two", 3),
        (OUT, b"th", 6),
    ]
    assert end == 8
    assert log.since(8, 100) == ([Output(OUT, b"ree", 8)], 11)
    assert log.since(11, 100) == ([], 11)


def test_the_older_part_of_a_channel_goes_and_offsets_stay() -> None:
    log = said((ERR, b"first"), (OUT, b"a" * 90), (OUT, b"b" * 90))
    assert log.whole(OUT) == b"a" * 10 + b"b" * 90
    assert log.whole(ERR) == b"first"
    assert (log.cut_off(OUT), log.cut_off(ERR), log.end) == (True, False, 185)
    pieces, _ = log.since(0, 1000)
    assert [(p.data[:1], p.offset) for p in pieces] == [(b"f", 0), (b"a", 85)]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_no_way_of_saying_it_takes_more_than_a_little_more_than_the_cap(size: int) -> None:
    log = Log(1 << 16)
    for number in range(100_000):
        log.add(Output(OUT if number % 2 else ERR, b"x" * size, log.end))
    assert log.cost < 4 << 16
    assert log.end == 100_000 * size


def test_what_lies_before_a_later_beginning_is_told_as_gone() -> None:
    log = Log()
    log.begin(1000)
    log.add(Output(OUT, b"tail", 1000))
    assert (log.cut, log.since(0, 100)) == (True, ([Output(OUT, b"tail", 1000)], 1004))
