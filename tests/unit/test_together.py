from __future__ import annotations

from functools import partial

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.together import together


async def test_results_come_in_the_order_of_the_jobs_whoever_is_first() -> None:
    second_is_done = anyio.Event()

    async def first() -> int:
        await second_is_done.wait()
        return 1

    async def second() -> int:
        second_is_done.set()
        return 2

    with anyio.fail_after(5):
        assert await together([first, second]) == [1, 2]


async def test_the_first_error_stops_the_others_and_comes_alone() -> None:
    stopped = False

    async def waits() -> None:
        nonlocal stopped
        try:
            await anyio.sleep_forever()
        finally:
            stopped = True

    async def fails() -> None:
        raise errors.PackageRefused("no")

    with anyio.fail_after(5), pytest.raises(errors.PackageRefused, match="no"):
        await together([waits, fails])
    assert stopped


async def test_no_more_run_at_once_than_may() -> None:
    running = most = 0

    async def job(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        return number

    assert await together([partial(job, n) for n in range(20)], at_once=3) == list(range(20))
    assert most == 3


async def test_an_error_that_nobody_knows_is_not_hidden() -> None:
    async def known() -> None:
        raise errors.PackageRefused("no")

    async def unknown() -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        await together([known, unknown])
    assert caught.value.subgroup(ZeroDivisionError) is not None
