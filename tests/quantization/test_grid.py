"""Grids: values on them, codes within range, integers within int8, and the same values as the stored form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.quantization.grid import Float32, channel_grid, progressive_grid
from headrace.quantization.layers import Codes
from headrace.quantization.model import runtime_matrix


def random_values(rows: int, inputs: int, seed: int) -> Float32:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, inputs)) * np.exp(rng.standard_normal((rows, 1)) * 2)
    values[0] = 0.0
    return values.astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([32, 64]), st.booleans())
def test_integers_of_groups_stay_in_int8(seed: int, group: int, weighted: bool) -> None:
    values = random_values(5, 128, seed)
    importance = np.random.default_rng(seed).random(128).astype(np.float32) if weighted else None
    grid = progressive_grid(values, group, importance)
    assert grid.scales is not None
    assert grid.zeros is not None
    assert 1 <= grid.scales.min() <= grid.scales.max() <= 17
    assert (15 * grid.scales - grid.zeros).max() <= 127
    assert (-grid.zeros).min() >= -128


@pytest.mark.parametrize("group", [32, 64, 0])
def test_rounding_finds_the_nearest_value(group: int) -> None:
    values = random_values(4, 64, 3)
    grid = progressive_grid(values, group) if group else channel_grid(values)
    low, high = grid.code_range
    every = np.stack([grid.values(np.full(values.shape, code, np.int32)) for code in range(low, high + 1)])
    nearest = np.abs(every - values).min(axis=0)
    assert np.allclose(np.abs(grid.snap(values) - values), nearest, rtol=0, atol=1e-6 * np.abs(values).max())


@pytest.mark.parametrize("group", [32, 64, 0])
def test_the_stored_form_holds_the_same_values(group: int) -> None:
    values = random_values(6, 128, 4)
    grid = progressive_grid(values, group) if group else channel_grid(values)
    codes = grid.round(values)
    assert np.array_equal(runtime_matrix("a", Codes(codes, grid), 8).values(), grid.values(codes))


@pytest.mark.parametrize("group", [64, 0])
def test_cutting_off_extremes_lowers_the_weighted_error(group: int) -> None:
    rng = np.random.default_rng(5)
    values = random_values(16, 128, 5)
    values[:, ::64] *= 3
    importance = np.where(np.arange(128) % 64, 1.0, 0.01).astype(np.float32) * (rng.random(128) + 0.5).astype(np.float32)
    plain = progressive_grid(values, group) if group else channel_grid(values)
    clipped = progressive_grid(values, group, importance) if group else channel_grid(values, importance)
    errors = [((grid.snap(values) - values) ** 2 @ importance).sum() for grid in (plain, clipped)]
    assert errors[1] < 0.98 * errors[0]
