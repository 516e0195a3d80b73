"""How training and serving share a step."""

from __future__ import annotations

import math

from headrace.scheduling.training_share import MOST_PASSED_OVER, ServingLoad, TrainingShare


def test_bursts_get_everything_and_an_idle_engine_gives_all() -> None:
    share = TrainingShare(0.05)
    assert share.allowance(ServingLoad(0, 0, 0.01)) == math.inf
    assert share.allowance(ServingLoad(16, 16, 0.01)) == 0.0
    assert math.isclose(share.allowance(ServingLoad(4, 0, 0.02)), 0.03)
    assert share.allowance(ServingLoad(4, 0, 0.06)) == 0.0


def test_without_a_target_steps_are_lengthened_by_half_within_the_bound() -> None:
    share = TrainingShare(None, 0.05)
    assert math.isclose(share.allowance(ServingLoad(4, 0, 0.02)), 0.01)
    assert math.isclose(share.allowance(ServingLoad(4, 0, 0.04)), 0.01)


def test_units_are_foreseen_from_what_they_took() -> None:
    share = TrainingShare(0.05)
    for _ in range(40):
        share.observe("forward", 0.5, 0.0102)
    assert math.isclose(share.predict("forward", 1.0), 0.0202, rel_tol=1e-3)
    assert share.fits("forward", 0.5, 0.011, first=True)
    assert not share.fits("forward", 0.5, 0.0099, first=True)


def test_what_scatters_is_foreseen_above_its_mean() -> None:
    share = TrainingShare(0.05)
    for turn in range(200):
        share.observe("forward", 0.5, 0.008 if turn % 2 else 0.012)
    assert share.predict("forward", 0.5) >= 0.012
    assert share.predict("forward", 0.5) < 0.02


def test_steps_that_scatter_leave_less() -> None:
    steady, rough = TrainingShare(0.05), TrainingShare(0.05)
    for turn in range(200):
        left = steady.allowance(ServingLoad(4, 0, 0.01)), rough.allowance(ServingLoad(4, 0, 0.007 if turn % 2 else 0.013))
    assert math.isclose(left[0], 0.04)
    assert left[1] < 0.05 - 0.013


def test_a_slow_step_takes_from_what_is_left_at_once() -> None:
    share = TrainingShare(0.05)
    for _ in range(100):
        share.allowance(ServingLoad(1, 0, 0.01))
    assert share.allowance(ServingLoad(8, 0, 0.04)) <= 0.0100001


def test_a_kind_that_never_ran_is_expected_to_be_slower_than_the_others() -> None:
    share = TrainingShare(0.05)
    for _ in range(40):
        share.observe("forward", 0.5, 0.0502)
    assert share.predict("head", 0.5) > 2.5 * share.predict("forward", 0.5)
    share.observe("head", 0.5, 0.0102)  # and then it is what it is
    assert math.isclose(share.predict("head", 0.5), 0.0102)


def test_one_slow_unit_does_not_end_training() -> None:
    share = TrainingShare(0.05)
    share.observe("forward", 0.5, 10.0)
    waited = next(step for step in range(1000) if share.fits("forward", 0.5, 0.015, first=True))
    assert waited < 0.75 * MOST_PASSED_OVER


def test_it_is_never_starved_where_there_is_any_room() -> None:
    share = TrainingShare(0.05)
    ran = 0
    for _ in range(2 * MOST_PASSED_OVER):
        if share.fits("forward", 100.0, 0.001, first=True):
            share.observe("forward", 100.0, 3.0)
            ran += 1
    assert ran == 2
    assert not any(share.fits("forward", 100.0, 0.0, first=True) for _ in range(2 * MOST_PASSED_OVER))


def test_jobs_share_by_weight() -> None:
    share, given = TrainingShare(None), {"a": 0.0, "b": 0.0, "late": 0.0}
    share.enter("a")
    share.enter("b")
    weights = {"a": 1, "b": 3, "late": 1}
    for turn in range(3000):
        if turn == 1500:
            share.enter("late")
        ready = ["a", "b"] + (["late"] if turn >= 1500 else [])
        job = share.next_job(ready)
        assert job is not None
        seconds = 0.003 if job == "a" else 0.005
        share.charge(job, seconds, weights[job])
        given[job] += seconds
    assert math.isclose(given["b"] / given["a"], 3.0, rel_tol=0.1)
    assert 0.2 < given["late"] / given["a"] < 0.7
    assert share.next_job([]) is None
