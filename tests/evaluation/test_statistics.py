"""Percentiles and promises against plain oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.evaluation.statistics import Fit, Promise, keeps, median_ratio, percentile, smoothed, summarize

FLOATS = st.floats(-1e6, 1e6)


@given(st.lists(FLOATS, min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_equal_numpy(values: list[float], point: float) -> None:
    assert percentile(sorted(values), point) == pytest.approx(float(np.percentile(values, point)), rel=1e-9, abs=1e-6)


def test_nothing_measured_is_not_zero() -> None:
    assert summarize([]).count == 0
    assert math.isnan(summarize([]).p50)
    assert math.isnan(median_ratio([], []))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40))
def test_smoothing_equals_the_written_out_weighted_mean(gaps: list[float]) -> None:
    decay = 1 - 2 / 17
    for count, value in enumerate(smoothed(gaps), start=1):
        weights = [decay**age for age in range(count)]
        oracle = sum(w * g for w, g in zip(weights, reversed(gaps[:count]), strict=True)) / sum(weights)
        assert value == pytest.approx(oracle, abs=1e-9)


def test_promise_punishes_a_stall_that_an_average_hides() -> None:
    promise = Promise(prompt_rate=100, stream_rate=10)
    steady = [0.02] * 50
    assert keeps(promise, 100, 0.9, steady)
    assert not keeps(promise, 100, 1.1, steady)
    stalled = [0.02] * 25 + [2.0] + [0.02] * 24
    assert sum(stalled) / len(stalled) < 0.1
    assert not keeps(promise, 100, 0.9, stalled)


def test_median_ratio_pairs_interleaved_runs() -> None:
    assert median_ratio([2, 4, 90], [1, 2, 30]) == 2


def test_counts_that_follow_other_chances_are_noticed() -> None:
    rng = np.random.default_rng(1)
    chances = rng.dirichlet(np.ones(50), 20)
    for power, likely in ((1.0, True), (0.8, False)):
        fit = Fit()
        for row in chances:
            other = row**power / (row**power).sum()
            fit.add(rng.multinomial(2000, row).tolist(), other.tolist())
        assert fit.freedom > 700
        assert (fit.p > 0.01) == likely
    assert Fit().p == 1.0


def test_what_cannot_be_is_never_a_fit() -> None:
    fit = Fit()
    fit.add([50, 50, 1], [0.5, 0.5, 0.0])
    assert fit.p == 0.0
