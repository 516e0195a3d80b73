"""The slow reference of integer products: right where the answer is plain, and able to see a wrong bit."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.evaluation.integer_products import CASES, extreme_rows, mismatches, reference
from headrace.kernels import _native
from headrace.models.weights import dequantise


@pytest.mark.parametrize("name", CASES)
def test_integers_are_what_the_codes_mean(name: str) -> None:
    case = CASES[name][1](24, 160, np.random.default_rng(0))
    assert np.array_equal(dequantise(case.tensor).astype(np.float64), case.integers)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_the_exact_sum_where_floats_hold_it(name: str) -> None:
    rng = np.random.default_rng(1)
    case = CASES[name][1](24, 160, rng)
    x = np.zeros((3, 160), np.float32)
    x[:, 5], x[:, 77] = case.peak, 3
    exact = case.peak * case.integers[:, 5] + 3 * case.integers[:, 77]
    kept = np.abs(exact) < 2**24
    assert kept.any()
    assert np.array_equal(reference(case, x)[0][kept], exact[kept])


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_integer_is_seen(name: str) -> None:
    rng = np.random.default_rng(2)
    case = CASES[name][1](16, 160, rng)
    x = extreme_rows(4, 160, case.peak, rng)
    pools = (_native.ThreadPool(1),)
    assert mismatches(case, x, (1, 4), pools) == (0, 5 * 16)
    case.integers[3, 9] += 200  # seen even where a sum of millions is rounded to 24 bits
    assert mismatches(case, x, (1, 4), pools)[0] > 0
