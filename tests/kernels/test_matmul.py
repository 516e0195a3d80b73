"""Packed products equal the numpy oracle bit for bit: every format, instruction set, row count and thread count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised_blocks import (
    FLOATS,
    LAYOUT,
    Bytes,
    Float32,
    dequantise,
    float_product,
    fma,
    grouped_product,
    product,
    random_blocks,
    take_apart,
)

from headrace.evaluation.kernel_conformance import rows_of_every_kind
from headrace.kernels._native import PackedMatrix, ThreadPool, set_isa
from headrace.kernels.formats import runnable_instruction_sets
from headrace.models.weights import BYTE_ROWS

Pools = tuple[ThreadPool, ThreadPool]
ROW_COUNTS = (1, 3, 4, 15, 16, 17, 64, 257)
GROUPED = [kind + BYTE_ROWS for kind in LAYOUT]


def shapes(kind: str) -> list[tuple[int, int]]:
    if kind in FLOATS:
        return [(1, 1), (17, 37), (130, 64)]
    block = LAYOUT[kind.removesuffix(BYTE_ROWS)][0]
    return [(1, block), (17, 3 * block), (130, 2 * block)]


def blocks(kind: str, outputs: int, inputs: int, rng: np.random.Generator) -> Bytes:
    return random_blocks(kind.removesuffix(BYTE_ROWS), outputs, inputs, rng)


def oracle(x: Float32, raw: Bytes, kind: str, outputs: int) -> Float32:
    if kind in GROUPED:
        return grouped_product(x, take_apart(raw, kind.removesuffix(BYTE_ROWS), outputs))
    if kind in FLOATS:
        return float_product(x, dequantise(raw, kind, outputs))
    return product(x, take_apart(raw, kind, outputs))


def assert_same_bits(got: Float32, wanted: Float32) -> None:
    np.testing.assert_array_equal(np.ascontiguousarray(got).view(np.uint32), np.ascontiguousarray(wanted).view(np.uint32))


@pytest.mark.parametrize("kind", [*LAYOUT, *GROUPED, *FLOATS])
def test_equals_oracle_for_every_row_count(kind: str, isa: str, pools: Pools) -> None:
    rng = np.random.default_rng(11)
    for outputs, inputs in shapes(kind):
        raw = blocks(kind, outputs, inputs, rng)
        matrix = PackedMatrix.pack([(raw, kind, outputs, inputs, None)], pools[1])
        x = rows_of_every_kind(max(ROW_COUNTS), inputs, rng)
        wanted = oracle(x, raw, kind, outputs) + np.float32(0)
        for count in ROW_COUNTS:
            for pool in pools:
                got = matrix.matmul(np.ascontiguousarray(x[:count]), pool)[:, :outputs] + np.float32(0)
                assert_same_bits(got, wanted[:count])


@pytest.mark.parametrize("kind", [*LAYOUT, *GROUPED])
@pytest.mark.parametrize("code", [0x00, 0x7F, 0x80, 0xFF])
def test_extreme_codes_do_not_saturate(kind: str, code: int, isa: str, pools: Pools) -> None:
    """All weights at an end of their range against rows at ±peak: the largest integers that can occur."""
    block, size, _, at_d, at_m = LAYOUT[kind.removesuffix(BYTE_ROWS)]
    raw = blocks(kind, 16, 2 * block, np.random.default_rng(1)).reshape(16, 2, size)
    kept = raw[..., at_d : at_d + 2].copy(), raw[..., at_m : at_m + 2].copy() if at_m is not None else None
    raw[...] = code
    raw[..., at_d : at_d + 2] = kept[0]
    if at_m is not None and kept[1] is not None:
        raw[..., at_m : at_m + 2] = kept[1]
    x = np.ones((9, 2 * block), np.float32)
    x[1] = -1
    x[2, ::2] = -1
    x[3, ::3] = -1
    x[4] = np.linspace(-1, 1, 2 * block)
    x[5, ::4] = np.float32(128.0 / 32512)  # low plane at its negative end
    flat = raw.reshape(-1)
    matrix = PackedMatrix.pack([(flat, kind, 16, 2 * block, None)], pools[0])
    assert_same_bits(matrix.matmul(x, pools[1]), oracle(x, flat, kind, 16))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([*LAYOUT, *GROUPED, *FLOATS]),
    outputs=st.integers(1, 70),
    count_of_blocks=st.integers(1, 4),
    count=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_instruction_sets_and_threads_agree(kind: str, outputs: int, count_of_blocks: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    encoding = kind.removesuffix(BYTE_ROWS)
    inputs = count_of_blocks * LAYOUT[encoding][0] if encoding in LAYOUT else int(rng.integers(1, 100))
    raw = blocks(kind, outputs, inputs, rng)
    pool = ThreadPool(2)
    matrix = PackedMatrix.pack([(raw, kind, outputs, inputs, None)], pool)
    x = rng.normal(size=(count, inputs)).astype(np.float32)
    try:
        results = []
        for name in runnable_instruction_sets():
            set_isa(name)
            results.append(matrix.matmul(x, pool))
            alone = np.concatenate([matrix.matmul(x[row : row + 1], pool) for row in range(count)])
            assert_same_bits(alone, results[-1])
    finally:
        set_isa("auto")
    for other in results[1:]:
        assert_same_bits(other, results[0])


def test_close_to_the_exact_product(isa: str, pools: Pools) -> None:
    """The arithmetic itself: 16-bit activations keep a product within 1e-4 of its norm."""
    rng = np.random.default_rng(5)
    raw = random_blocks("Q4_1", 64, 576, rng)
    x = rng.normal(size=(32, 576)).astype(np.float32)
    exact = x.astype(np.float64) @ dequantise(raw, "Q4_1", 64).astype(np.float64).T
    got = PackedMatrix.pack([(raw, "Q4_1", 64, 576, None)], pools[0]).matmul(x, pools[0])
    assert np.abs(got - exact).max() < 1e-4 * np.abs(exact).max()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_value_breaks_its_whole_row_and_no_other(broken: float, isa: str, pools: Pools) -> None:
    x = np.ones((9, 96), np.float32)
    x[3, 70] = broken
    for kind in ("Q4_1A8", "Q8_0A8"):
        raw = blocks(kind, 40, 96, np.random.default_rng(2))
        got = PackedMatrix.pack([(raw, kind, 40, 96, None)], pools[0]).matmul(x, pools[1])[:, :40]
        assert np.isnan(got[3]).all()
        assert np.isfinite(np.delete(got, 3, 0)).all()


def test_scales_of_groups_keep_outliers_to_themselves(pools: Pools) -> None:
    """What rows of 8 bits gain by a scale every 32 inputs: beside one large input the others keep their precision."""
    rng = np.random.default_rng(5)
    raw = random_blocks("Q4_1", 64, 576, rng)
    x = rng.normal(size=(32, 576)).astype(np.float32)
    x[:, 7] = 100
    exact = x.astype(np.float64) @ dequantise(raw, "Q4_1", 64).astype(np.float64).T
    got = PackedMatrix.pack([(raw, "Q4_1A8", 64, 576, None)], pools[0]).matmul(x, pools[0])
    whole = np.rint(x * (127 / 100)) * (100 / 127) @ dequantise(raw, "Q4_1", 64).astype(np.float64).T
    assert np.abs(got - exact).mean() < 0.3 * np.abs(whole - exact).mean()


def test_wrong_width_and_unknown_instruction_set_are_refused(pools: Pools) -> None:
    raw = random_blocks("Q8_0", 4, 64, np.random.default_rng(0))
    matrix = PackedMatrix.pack([(raw, "Q8_0", 4, 64, None)], pools[0])
    with pytest.raises(ValueError, match="inputs"):
        matrix.matmul(np.zeros((2, 32), np.float32), pools[0])
    with pytest.raises(ValueError, match="sse9"):
        set_isa("sse9")


def test_no_rows_give_no_rows(pools: Pools) -> None:
    raw = random_blocks("Q4_0", 4, 64, np.random.default_rng(0))
    matrix = PackedMatrix.pack([(raw, "Q4_0", 4, 64, None)], pools[0])
    assert matrix.matmul(np.zeros((0, 64), np.float32), pools[1]).shape == (0, 16)


@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**50), max_value=2.0**50), min_size=3, max_size=3
    )
)
def test_oracle_fma_rounds_once(values: list[float]) -> None:
    """The oracle's own fma against exact fractions."""
    from fractions import Fraction

    a, b, c = (np.array([v], np.float32) for v in values)
    got = float(fma(a, b, c)[0])
    exact = Fraction(float(a[0])) * Fraction(float(b[0])) + Fraction(float(c[0]))
    neighbours = [float(np.nextafter(np.float32(got), np.float32(side))) for side in (-np.inf, np.inf)]
    assert all(abs(Fraction(got) - exact) <= abs(Fraction(other) - exact) for other in neighbours)
