"""Kept codes: the source's nibbles, and weights far nearer than rounding onto another 4-bit grid brings them."""

from __future__ import annotations

import numpy as np
import pytest
from nibble_matrices import nibble_matrix

from headrace.errors import HeadraceError
from headrace.models.nibble_groups import NIBBLE_KINDS, NibbleGroups, nibble_groups
from headrace.models.weights import dequantise
from headrace.quantization.grid import progressive_grid
from headrace.quantization.model import runtime_matrix
from headrace.quantization.source_codes import keep_codes, squared_error


@pytest.mark.parametrize("kind", NIBBLE_KINDS)
def test_nibbles_stay_and_weights_hardly_move(kind: str) -> None:
    raw = nibble_matrix(kind, 7, 512, np.random.default_rng(5))
    source, values = nibble_groups(raw), dequantise(raw)
    kept = keep_codes(source)
    mirrored = np.repeat(source.scales < 0, 32, axis=1)
    assert np.array_equal(kept.codes, np.where(mirrored, 15 - source.codes, source.codes))
    assert squared_error(kept, values) ** 0.5 < 0.004
    rounded = progressive_grid(values, 32).snap(values)
    assert np.square(rounded - values).sum() > 100 * np.square(kept.values() - values).sum()
    assert np.array_equal(runtime_matrix("a", kept, 16).values(), kept.values())


def test_odd_rows_are_stored_all_the_same() -> None:
    codes = np.random.default_rng(6).integers(0, 16, (3, 64)).astype(np.uint8)
    scales = np.array([[0, 0], [0, 1e-3], [1e-6, 1e-6]], np.float32)
    minima = np.array([[0, 0], [-0.5, 0], [3.0, -3.0]], np.float32)
    source = NibbleGroups(codes, scales, minima)
    made = runtime_matrix("a", keep_codes(source), 8).values()
    wanted = codes * np.repeat(scales, 32, axis=1) + np.repeat(minima, 32, axis=1)
    assert np.abs(made - wanted).max() <= 0.004 * np.abs(wanted).max()
    assert not made[0].any()


def test_scales_that_are_no_numbers_are_refused() -> None:
    source = NibbleGroups(np.zeros((1, 32), np.uint8), np.array([[np.inf]], np.float32), np.zeros((1, 1), np.float32))
    with pytest.raises(HeadraceError, match="not a number"):
        keep_codes(source)
