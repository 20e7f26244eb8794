from __future__ import annotations

from microvm_orchestrator.web.sessions import LASTS_S, Sessions


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_cookie_stands_for_the_token_that_was_shown_until_it_is_ended() -> None:
    sessions = Sessions()
    first, second = sessions.begin("mo_a"), sessions.begin("mo_a")
    assert first != second
    assert "mo_a" not in first
    assert sessions.token_of(first) == "mo_a"
    sessions.end(first)
    assert sessions.token_of(first) is None
    assert sessions.token_of(second) == "mo_a"
    for nobody in ("", "mo_a", "x" * 5000, "\ud800"):
        assert sessions.token_of(nobody) is None


def test_a_cookie_stands_for_a_token_no_longer_than_a_day_of_work() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    cookie = sessions.begin("mo_a")
    clock.now += LASTS_S - 1
    assert sessions.token_of(cookie) == "mo_a"
    clock.now += 1
    assert sessions.token_of(cookie) is None


def test_of_too_many_the_oldest_goes() -> None:
    sessions = Sessions()
    cookies = [sessions.begin(f"mo_{number}") for number in range(1001)]
    assert sessions.token_of(cookies[0]) is None
    assert sessions.token_of(cookies[1]) == "mo_1"
    assert sessions.token_of(cookies[-1]) == "mo_1000"
