"""Waits before another start."""

from __future__ import annotations

from headrace.placement.back_off import LONGEST_SECONDS, STEADY_SECONDS, BackOff


def test_each_wait_in_a_row_is_twice_as_long_up_to_a_bound() -> None:
    back_off = BackOff(first=0.5)
    assert [back_off.after(1.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_who_ran_for_long_or_is_well_again_begins_anew() -> None:
    back_off = BackOff(first=0.5)
    assert [back_off.after(0.0) for _ in range(3)] == [0.5, 1, 2]
    assert back_off.after(STEADY_SECONDS + 1) == 0.5
    assert back_off.after(STEADY_SECONDS) == 1
    back_off.forget()
    assert back_off.after(0.0) == 0.5


def test_who_fails_for_days_goes_on_failing_at_the_longest_wait() -> None:
    back_off = BackOff()
    assert {back_off.after(0.0) for _ in range(5000)} >= {LONGEST_SECONDS}
    assert back_off.after(0.0) == LONGEST_SECONDS
