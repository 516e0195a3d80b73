"""Hadamard matrices: of ±1, orthogonal, for the sizes of real models; refused clearly elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import HeadraceError
from headrace.quantization.hadamard import hadamard, is_known, rotation

SIZES = [1, 2, 4, 12, 20, 28, 36, 40, 52, 60, 64, 100, 108, 140, 256, 576, 640, 896, 960]


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_orthogonal(size: int) -> None:
    matrix = hadamard(size).astype(np.float32)  # exact: sums of a thousand ones
    assert set(np.unique(matrix)) <= {-1, 1}
    assert np.array_equal(matrix @ matrix.T, size * np.eye(size, dtype=np.float32))


@pytest.mark.parametrize("size", [3, 6, 92, 1023])
def test_unknown_sizes_are_refused(size: int) -> None:
    assert not is_known(size)
    with pytest.raises(HeadraceError, match=f"for {size} values"):
        hadamard(size)


def test_rotation_keeps_lengths_and_signs_repeat() -> None:
    one, two = rotation(36, seed=5), rotation(36, seed=5)
    assert np.array_equal(one, two)
    assert np.abs(one @ one.T - np.eye(36)).max() < 1e-6
    assert not np.array_equal(one, rotation(36))
