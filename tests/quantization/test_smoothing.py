"""Smoothing factors: pairs share them, outliers shrink, and the search never makes a product worse."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.quantization.grid import progressive_grid
from headrace.quantization.smoothing import input_factors, key_factors, round_rows, search_factors
from headrace.quantization.statistics import InputStatistics


def statistics(rows: np.ndarray) -> InputStatistics:
    rows = rows.astype(np.float32)
    return InputStatistics(rows.T @ rows / np.float32(len(rows)), np.abs(rows).max(axis=0), rows)


def test_key_factors_follow_the_larger_member_of_a_pair() -> None:
    peak = np.ones((2, 8), np.float32)
    peak[0, 5], peak[1, 2] = 16.0, 4.0
    factors = key_factors(peak, shared=False)
    assert np.array_equal(factors[:, :4], factors[:, 4:])
    assert factors[0, 1] / factors[0, 0] == pytest.approx(4.0)
    assert factors[1, 2] / factors[1, 0] == pytest.approx(2.0)
    shared = key_factors(peak, shared=True)
    assert np.array_equal(shared[0], shared[1])
    assert shared[1, 1] / shared[1, 0] == pytest.approx(4.0)


def test_key_factors_survive_channels_that_are_always_zero() -> None:
    assert np.isfinite(key_factors(np.zeros((1, 4), np.float32), shared=False)).all()


@pytest.mark.parametrize(("group", "bits"), [(32, 8), (32, 16), (0, 8)])
def test_search_lowers_the_products_error_where_channels_differ(group: int, bits: int) -> None:
    rng = np.random.default_rng(0)
    size = np.exp(2 * rng.standard_normal(64))
    rows = rng.standard_normal((200, 64)) * size
    weights = (rng.standard_normal((32, 64)) / size**0.5).astype(np.float32)
    found = statistics(rows)
    factors = search_factors(weights, found, group, bits)
    wanted = found.sample @ weights.T

    def error(scale: np.ndarray) -> float:
        from headrace.quantization.grid import channel_grid

        scaled = (weights * scale).astype(np.float32)
        grid = progressive_grid(scaled, group) if group else channel_grid(scaled)
        return float(np.square(round_rows((found.sample / scale).astype(np.float32), bits) @ grid.snap(scaled).T - wanted).mean())

    assert error(factors) < 0.7 * error(np.ones(64))


def test_even_channels_need_nothing() -> None:
    factors = input_factors(np.full(8, 3.0, np.float32), np.full(8, 0.1, np.float32), 0.5, 0.5)
    assert np.allclose(factors, 1.0)


def test_statistics_change_as_the_rows_do() -> None:
    rng = np.random.default_rng(1)
    rows, factors, order = rng.standard_normal((50, 8)), np.exp(rng.standard_normal(8)), rng.permutation(8)
    changed = statistics(rows).divided(factors.astype(np.float32)).reordered(order)
    expected = statistics((rows / factors)[:, order])
    assert np.allclose(changed.hessian, expected.hessian, rtol=1e-4, atol=1e-5)
    assert np.allclose(changed.peak, expected.peak, rtol=1e-5)
    assert np.allclose(changed.sample, expected.sample, rtol=1e-5)


def test_rows_of_16_bits_are_finer_than_of_8() -> None:
    rows = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    rows[2] = 0
    coarse, fine = (np.abs(round_rows(rows, bits) - rows).max() for bits in (8, 16))
    assert 0 < fine < coarse / 100
    assert not round_rows(rows, 8)[2].any()
