"""Packing keeps what the file says, refuses what it can't be, and stacks and permutes as asked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised_blocks import FLOATS, LAYOUT, dequantise, put_half, random_blocks

from headrace.errors import HeadraceError
from headrace.kernels._native import PackedMatrix, ThreadPool
from headrace.kernels.formats import source_kinds, weight_formats
from headrace.kernels.packing import pack
from headrace.models.integer_rows import GROUP_OF_KIND
from headrace.models.weights import BYTE_ROWS, RawTensor

Pools = tuple[ThreadPool, ThreadPool]
EVERY_KIND = [*LAYOUT, *FLOATS]


def tensor(kind: str, rows: int, inputs: int, seed: int = 0) -> RawTensor:
    return RawTensor(kind, (rows, inputs), random_blocks(kind, rows, inputs, np.random.default_rng(seed)))


def columns(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_values_are_the_files_values(kind: str, pools: Pools) -> None:
    inputs = 512 if kind in LAYOUT else 51
    source = tensor(kind, 50, inputs, seed=3)
    values = dequantise(source.data, kind, 50)
    matrix = pack([source], pools[1])
    got = matrix.dequantize(np.arange(50, dtype=np.int32))
    if kind in ("Q4_K", "Q6_K"):  # d·scale and dmin·min are rounded to fp16: 2^-11 of each part
        magnitude = np.abs(values).reshape(50, -1, 16).max(axis=2, keepdims=True)
        assert (np.abs(got - values).reshape(50, -1, 16) <= magnitude * 2e-3 + 2e-5).all()
        assert np.abs(got - values).max() > 0
    else:
        np.testing.assert_array_equal(got, values)
    assert matrix.dequantize(np.arange(50, 64, dtype=np.int32)).any() == np.False_


def test_every_declared_kind_is_tested() -> None:
    grouped = [kind + BYTE_ROWS for kind in LAYOUT]
    assert sorted(source_kinds()) == sorted([*EVERY_KIND, *grouped, *GROUP_OF_KIND])  # the last by test_integer_matmul.py


@pytest.mark.parametrize("kind", list(LAYOUT))
def test_rows_of_8_bits_take_the_same_panels(kind: str, pools: Pools) -> None:
    source = tensor(kind, 50, 512, seed=3)
    usual, grouped = pack([source], pools[1]), pack([dataclasses.replace(source, kind=kind + BYTE_ROWS)], pools[1])
    np.testing.assert_array_equal(usual.panels, grouped.panels)
    where = np.arange(50, dtype=np.int32)
    np.testing.assert_array_equal(usual.dequantize(where), grouped.dequantize(where))
    assert {weight_formats()[name].activation_bits for name in grouped.formats} == {8}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_bytes_count_padding(kind: str, pools: Pools) -> None:
    matrix = pack([tensor(kind, 17, 256)], pools[0])
    style = weight_formats()[source_kinds()[kind].format]
    assert matrix.columns == 32
    assert matrix.formats == [style.name] * 2
    assert matrix.bytes == 2 * (256 // style.group) * style.record_bytes


def test_stack_mixes_formats_and_pads_each_source(pools: Pools) -> None:
    sources = [tensor("Q4_K", 40, 256, 1), tensor("Q6_K", 16, 256, 2), tensor("F16", 5, 256, 3)]
    stacked = pack(sources, pools[1])
    assert stacked.column_starts == [0, 48, 64]
    assert stacked.source_rows == [40, 16, 5]
    x = np.random.default_rng(4).normal(size=(9, 256)).astype(np.float32)
    together = stacked.matmul(x, pools[1])
    for source, start in zip(sources, stacked.column_starts, strict=True):
        alone = pack([source], pools[0]).matmul(x, pools[0])
        np.testing.assert_array_equal(together[:, start : start + source.rows], alone[:, : source.rows])


def test_interleaved_panels_alternate(pools: Pools) -> None:
    gate, up = tensor("Q4_1", 40, 96, 1), tensor("Q8_0", 40, 96, 2)
    both = pack([gate, up], pools[1], interleave=True)
    assert both.interleaved
    assert both.formats == ["w4", "w8"] * 3
    assert both.column_starts == [0, 16]
    for offset, source in ((0, gate), (16, up)):
        where = np.array([row // 16 * 32 + row % 16 + offset for row in range(40)], np.int32)
        np.testing.assert_array_equal(both.dequantize(where), dequantise(source.data, source.kind, 40))


def test_interleaving_needs_two_of_equal_height(pools: Pools) -> None:
    for sources in ([tensor("Q4_1", 16, 32)], [tensor("Q4_1", 16, 32), tensor("Q4_1", 32, 32)]):
        with pytest.raises(HeadraceError, match="interleaved"):
            pack(sources, pools[0], interleave=True)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(EVERY_KIND), rows=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_row_order_permutes_outputs(kind: str, rows: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(rows).astype(np.int32)
    source = tensor(kind, rows, 256, seed)
    matrix = pack([RawTensor(kind, source.shape, source.data, order)], ThreadPool(1))
    plain = pack([source], ThreadPool(1))
    np.testing.assert_array_equal(matrix.dequantize(np.arange(rows, dtype=np.int32)), plain.dequantize(order))


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_length_is_refused(kind: str, change: int, pools: Pools) -> None:
    data = tensor(kind, 16, 256).data
    wrong = data[:-1] if change < 0 else np.append(data, np.uint8(0))
    with pytest.raises(HeadraceError, match="bytes") as refusal:
        pack([RawTensor(kind, (16, 256), wrong)], pools[0])
    assert refusal.value.code == "model_file"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (RawTensor("Q3_K", (16, 256), np.zeros(16 * 110, np.uint8)), "Q3_K"),
        (RawTensor("Q4_0", (16, 40), np.zeros(16 * 18, np.uint8)), "multiples of 32"),
        (RawTensor("F32", (0, 8), np.zeros(0, np.uint8)), "empty"),
        (RawTensor("F32", (8,), np.zeros(32, np.uint8)), "two sides"),
        (RawTensor("F32", (1 << 40, 8), np.zeros(32, np.uint8)), "two sides"),
        (RawTensor("F32", (1 << 30, 1 << 30), np.zeros(32, np.uint8)), "bytes"),
        (RawTensor("F32", (2, 4), np.zeros(32, np.uint8), columns(0, 2)), "row order"),
        (RawTensor("F32", (2, 4), np.zeros(32, np.uint8), columns(0, -1)), "row order"),
        (RawTensor("F32", (2, 4), np.zeros(32, np.uint8), columns(0)), "row order"),
    ],
)
def test_lies_about_shape_kind_or_order_are_refused(bad: RawTensor, words: str, pools: Pools) -> None:
    with pytest.raises(HeadraceError, match=words):
        pack([bad], pools[0])


def test_sources_of_different_width_are_refused(pools: Pools) -> None:
    with pytest.raises(HeadraceError, match="differ in inputs"):
        pack([tensor("Q4_1", 16, 32), tensor("Q4_1", 16, 64)], pools[0])
    with pytest.raises(HeadraceError, match="at least one"):
        pack([], pools[0])


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_scales_that_are_not_finite_are_refused(kind: str, value: float, pools: Pools) -> None:
    data = tensor(kind, 20, 256).data.copy()
    if kind in FLOATS:
        bits = np.array([value], np.float32).view(np.uint8)
        number = bits[2:] if kind == "BF16" else np.array([value], np.float16 if kind == "F16" else np.float32).view(np.uint8)
        data[-number.size :] = number
    else:
        _, size, _, at_d, _ = LAYOUT[kind]
        put_half(data.reshape(-1, size)[-1:], at_d, np.array([value]))
    with pytest.raises(HeadraceError, match="infinite or not a number"):
        pack([RawTensor(kind, (20, 256), data)], pools[1])


def test_columns_outside_are_refused(pools: Pools) -> None:
    matrix = pack([tensor("Q4_1", 16, 32)], pools[0])
    for column in (-1, 16):
        with pytest.raises(IndexError):
            matrix.dequantize(columns(column))


def test_packing_reads_read_only_maps(pools: Pools) -> None:
    source = tensor("Q4_1", 16, 32)
    source.data.flags.writeable = False
    assert isinstance(pack([source], pools[0]), PackedMatrix)
