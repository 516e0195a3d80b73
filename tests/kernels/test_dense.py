"""Products in fp32 with packed weights: the values that codes stand for, in one order of sums everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from quantised_blocks import FLOATS, LAYOUT, random_blocks

from headrace.kernels._native import DenseMatrix, PackedMatrix, ThreadPool, set_isa
from headrace.kernels.formats import runnable_instruction_sets
from headrace.models.weights import BYTE_ROWS

Pools = tuple[ThreadPool, ThreadPool]


def packed(kind: str, rows: tuple[int, ...], inputs: int, pool: ThreadPool, *, interleave: bool = False) -> PackedMatrix:
    rng = np.random.default_rng(len(rows))
    sources = [
        (random_blocks(kind.removesuffix(BYTE_ROWS), count, inputs, rng).reshape(-1), kind, count, inputs, None) for count in rows
    ]
    return PackedMatrix.pack(sources, pool, interleave)


def values(matrix: PackedMatrix) -> np.ndarray:
    """Outputs one source behind the other, by the slow way."""
    step = 32 if matrix.interleaved else 16
    columns = [
        start + row // 16 * step + row % 16
        for start, rows in zip(matrix.column_starts, matrix.source_rows, strict=True)
        for row in range(rows)
    ]
    return matrix.dequantize(np.array(columns, np.int32))


def both(matrix: DenseMatrix, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, dx = np.empty((len(x), matrix.outputs), np.float32), np.empty((len(dy), matrix.inputs), np.float32)
    matrix.forward(x, y, 0, matrix.outputs)
    matrix.backward(dy, dx, 0, matrix.outputs)
    return y, dx


def shapes(kind: str) -> list[tuple[tuple[int, ...], int]]:
    if kind in FLOATS:
        return [((1,), 1), ((17, 5, 70), 37), ((300,), 272)]
    block = LAYOUT[kind.removesuffix(BYTE_ROWS)][0]
    return [((1,), block), ((17, 5, 70), 3 * block), ((300,), 288 // block * block or block)]


@pytest.mark.parametrize("kind", [*LAYOUT, *FLOATS, next(iter(LAYOUT)) + BYTE_ROWS])
def test_both_products_are_those_of_the_values_on_every_instruction_set(kind: str, pools: Pools) -> None:
    rng = np.random.default_rng(7)
    for rows, inputs in shapes(kind):
        matrix = packed(kind, rows, inputs, pools[0])
        dense, plain = DenseMatrix(matrix), values(matrix).astype(np.float64)
        x, dy = (rng.standard_normal((19, width)).astype(np.float32) for width in (inputs, sum(rows)))
        found = []
        for name in runnable_instruction_sets():
            set_isa(name)
            found.append(both(dense, x, dy))
        set_isa("auto")
        for got, one, two in zip(found[0], (x, dy), (plain.T, plain), strict=True):
            scale = np.abs(one.astype(np.float64)) @ np.abs(two)
            assert (np.abs(got - one.astype(np.float64) @ two) <= 4e-6 * scale + 1e-30).all()
        for other in found[1:]:
            for got, wanted in zip(other, found[0], strict=True):
                np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))


def test_interleaved_sources_come_one_behind_the_other(pools: Pools) -> None:
    apart, mixed = (packed("F32", (40, 40), 24, pools[0], interleave=flag) for flag in (False, True))
    np.testing.assert_array_equal(values(apart), values(mixed))
    x, dy = (np.random.default_rng(1).standard_normal((5, width)).astype(np.float32) for width in (24, 80))
    for got, wanted in zip(both(DenseMatrix(mixed), x, dy), both(DenseMatrix(apart), x, dy), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_rows_ranges_and_strides_change_no_bit(pools: Pools) -> None:
    matrix = packed("BF16", (530,), 400, pools[0])
    dense, rng = DenseMatrix(matrix), np.random.default_rng(2)
    wide = rng.standard_normal((23, 1000)).astype(np.float32)
    x, dy = wide[:, 3:403], wide[:, 420:950]
    y, dx = both(dense, np.ascontiguousarray(x), np.ascontiguousarray(dy))
    out = np.zeros((23, 900), np.float32)
    dense.forward(x[4:5], out[4:5, 7:537], 0, 530)
    np.testing.assert_array_equal(out[4, 7:537], y[4])
    assert not out[4, 537:].any()
    for first, end in ((0, 32), (32, 512), (512, 530)):
        part = np.empty((23, end - first), np.float32)
        dense.forward(x, part, first, end)
        np.testing.assert_array_equal(part, y[:, first:end])
    total = np.empty_like(dx)
    dense.backward(dy[:, :256], total, 0, 256)
    dense.backward(dy[:, 256:], total, 256, 530, add=True)
    np.testing.assert_array_equal(total, dx)  # 256 outputs are one block of the sum


def test_what_does_not_fit_is_refused(pools: Pools) -> None:
    dense = DenseMatrix(packed("F32", (40,), 24, pools[0]))
    x, y = np.zeros((2, 24), np.float32), np.zeros((2, 40), np.float32)
    for bad_x, bad_y, first, end in (
        (x[:, ::2], y, 0, 40), (x[:1], y, 0, 40), (x, y[:, :39], 0, 40), (x, y, 0, 41), (x, y[:, :20], 0, 20),
        (x, y[:, :0], 16, 16),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"fit the matrix|empty or cuts"):
            dense.forward(bad_x, bad_y, first, end)
