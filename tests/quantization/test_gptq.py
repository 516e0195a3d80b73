"""Error feedback: better outputs than plain rounding, exact where inputs don't interact."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.quantization.gptq import gptq, output_error
from headrace.quantization.grid import Float32, channel_grid, progressive_grid


def correlated_rows(count: int, inputs: int, seed: int) -> Float32:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs // 4, inputs))
    return (rng.standard_normal((count, inputs // 4)) @ mix + 0.2 * rng.standard_normal((count, inputs))).astype(np.float32)


@pytest.mark.parametrize("inputs", [64, 160, 256])  # within a block, across blocks, whole blocks
@pytest.mark.parametrize("group", [32, 0])
def test_outputs_are_nearer_than_with_plain_rounding(inputs: int, group: int) -> None:
    rows = correlated_rows(600, inputs, inputs)
    hessian = rows.T @ rows / np.float32(len(rows))
    values = np.random.default_rng(1).standard_normal((24, inputs)).astype(np.float32)
    grid = progressive_grid(values, group) if group else channel_grid(values)
    codes = gptq(values, hessian, grid)
    assert codes.min() >= grid.code_range[0]
    assert codes.max() <= grid.code_range[1]
    plain, fed_back = (output_error(values, rounded, hessian) for rounded in (grid.snap(values), grid.values(codes)))
    assert fed_back < 0.6 * plain
    assert plain == pytest.approx(np.square(rows @ (values - grid.snap(values)).T).sum() / len(rows), rel=1e-3)


def test_independent_inputs_are_rounded_plainly() -> None:
    values = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    grid = progressive_grid(values, 32)
    assert np.array_equal(gptq(values, np.diag(np.arange(1, 65)).astype(np.float32), grid), grid.round(values))


def test_inputs_that_never_appear_do_no_harm() -> None:
    rows = correlated_rows(300, 64, 3)
    rows[:, 10:20] = 0
    values = np.random.default_rng(3).standard_normal((8, 64)).astype(np.float32)
    grid = progressive_grid(values, 32)
    codes = gptq(values, rows.T @ rows / np.float32(len(rows)), grid)
    assert np.array_equal(codes[:, 10:20], grid.round(values)[:, 10:20])
