"""One timer for many waits, beside asyncio's own timeouts."""

from __future__ import annotations

import asyncio

import pytest

from headrace.server.patience import Patience

LONG = 60.0


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


def test_what_is_in_time_is_given_back_and_no_timer_stays() -> None:
    async def work() -> None:
        with Patience() as patience:
            for number in range(100):
                assert await patience.wait(asyncio.sleep(0, number), LONG) == number
            handle = patience._timer
            assert handle is not None
            assert not handle.cancelled()
        assert handle.cancelled()

    asyncio.run(work())


def test_each_late_wait_is_cancelled_and_the_next_one_starts_anew() -> None:
    async def work() -> None:
        with Patience() as patience:
            for seconds in (0.02, LONG, 0.01, 0.02):
                if seconds == LONG:
                    assert await patience.wait(asyncio.sleep(0.03, "in time"), seconds) == "in time"
                    continue
                with pytest.raises(TimeoutError):
                    await patience.wait(hang(), seconds)
                task = asyncio.current_task()
                assert task is not None
                assert task.cancelling() == 0

    asyncio.run(work())


def test_a_shorter_wait_after_a_longer_one_ends_in_its_own_time() -> None:
    async def work() -> None:
        with Patience() as patience:
            await patience.wait(asyncio.sleep(0), LONG)
            with pytest.raises(TimeoutError):
                await patience.wait(hang(), 0.01)

    asyncio.run(asyncio.wait_for(work(), LONG / 2))


@pytest.mark.parametrize("late", [False, True])
def test_who_cancels_the_task_is_obeyed_even_when_the_wait_is_late_too(late: bool) -> None:
    async def work() -> None:
        with Patience() as patience:
            task = asyncio.current_task()
            assert task is not None

            def cancel() -> None:
                if late:
                    patience._due = 0.0
                    patience._look()
                task.cancel()

            asyncio.get_running_loop().call_later(0.01, cancel)
            await patience.wait(hang(), LONG)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(work())


def test_what_fails_by_itself_is_passed_on() -> None:
    async def broken() -> None:
        raise ValueError("own")

    async def work() -> None:
        with Patience() as patience:
            await patience.wait(broken(), LONG)

    with pytest.raises(ValueError, match="own"):
        asyncio.run(work())
