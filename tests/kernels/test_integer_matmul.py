"""Products of integer formats: every instruction set, row count, group and thread count gives the bits of a plain oracle."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from quantised_models import random_matrix

from headrace.errors import HeadraceError
from headrace.kernels import _native
from headrace.kernels.packing import pack
from headrace.models.integer_rows import kind_name
from headrace.models.quantised_matrix import QuantisedMatrix
from headrace.models.weights import RawTensor, dequantise

Float32 = npt.NDArray[np.float32]
ROWS = (1, 3, 4, 15, 16, 17, 64, 257)
FORMS = [(group, bits) for group in (0, 32, 64, 128) for bits in (8, 16)]


def quantise_rows(x: Float32, bits: int) -> tuple[npt.NDArray[np.int64], Float32]:
    """Codes and scale of each row, in the same float steps as the kernels."""
    peak = np.float32(127 if bits == 8 else 32512)
    amax = np.abs(x).max(axis=1)
    live = amax > np.float32(1e-30)
    inverse = np.where(live, peak / np.where(live, amax, np.float32(1)), np.float32(0)).astype(np.float32)
    return np.rint(x * inverse[:, None]).astype(np.int64), np.where(live, amax / peak, np.float32(0)).astype(np.float32)


def oracle(matrix: QuantisedMatrix, x: Float32) -> Float32:
    """One exact integer a row and output, then one rounding to float and the two scales."""
    codes, scales = quantise_rows(x, matrix.activation_bits)
    exact = codes @ matrix.integers().astype(np.int64).T
    return np.asarray(exact.astype(np.float32) * matrix.channel_scales * scales[:, None])


def random_rows(rows: int, inputs: int) -> Float32:
    x = np.random.default_rng([rows, inputs]).standard_normal((rows, inputs), dtype=np.float32)
    x[rows // 2] *= np.float32(1e4)
    if rows > 2:
        x[1] = 0.0
    return x


def extreme(group: int, bits: int, kind: str) -> QuantisedMatrix:
    """Codes, scales and zeros at the ends of their ranges (inputs few enough for 32 bits)."""
    rows, inputs = 19, 160
    scales = np.linspace(-1, 1, rows, dtype=np.float32)
    if not group:
        value = {"low": -128, "high": 127}[kind]
        return QuantisedMatrix("a", np.full((rows, inputs), value, np.int8), None, None, scales, 0, bits)
    shape = (rows, -(-inputs // group))
    codes = np.full((rows, inputs // 2), 255 if kind == "high" else 0xF0, np.uint8)
    zeros = np.full(shape, -32768 if kind == "high" else 32767, np.int16)
    return QuantisedMatrix("a", codes, np.full(shape, 255, np.uint8), zeros, scales, group, bits)


def products(matrix: QuantisedMatrix, x: Float32, threads: int = 1) -> Float32:
    pool = _native.ThreadPool(threads)
    packed = pack([matrix.encode()], pool)
    return np.asarray(packed.matmul(x, pool))[:, : matrix.shape[0]]


@pytest.mark.parametrize(("group", "bits"), FORMS)
@pytest.mark.parametrize("inputs", [32, 96, 160, 576])
def test_products_have_the_oracle_s_bits(group: int, bits: int, inputs: int, isa: str) -> None:
    matrix = random_matrix("a", (37, inputs), group, bits)
    for rows in ROWS if inputs == 160 else ROWS[:-1]:
        x = random_rows(rows, inputs)
        assert np.array_equal(products(matrix, x, 1 + rows % 2), oracle(matrix, x)), f"{rows} rows"


@pytest.mark.parametrize(("group", "bits"), FORMS)
@pytest.mark.parametrize("kind", ["low", "high"])
def test_extreme_codes_scales_and_zeros(group: int, bits: int, kind: str, isa: str) -> None:
    matrix = extreme(group, bits, kind)
    for rows in (1, 4, 17, 64):
        for x in (random_rows(rows, 160), np.full((rows, 160), -3.0, np.float32)):
            assert np.array_equal(products(matrix, x), oracle(matrix, x)), f"{rows} rows"


@pytest.mark.parametrize("bits", [8, 16])
def test_wide_panels_are_expanded_in_pieces(bits: int, isa: str) -> None:
    matrix = random_matrix("a", (16, 2208), 64, bits)
    x = random_rows(70, 2208)
    assert np.array_equal(products(matrix, x, 2), oracle(matrix, x))


@pytest.mark.parametrize(("group", "bits"), FORMS)
def test_panels_give_their_values_back(group: int, bits: int) -> None:
    matrix = random_matrix("a", (37, 160), group, bits)
    packed = pack([matrix.encode()], _native.ThreadPool(1))
    assert np.array_equal(packed.dequantize(np.arange(37, dtype=np.int32)), matrix.values())
    assert set(packed.formats) == {f"q8a{bits}" if not group else f"q4g{group}a{bits}"}


def test_formats_mix_in_one_matrix(isa: str) -> None:
    narrow, wide = random_matrix("a", (16, 96), 32, 8), random_matrix("b", (32, 96), 0, 16)
    pool, x = _native.ThreadPool(1), random_rows(21, 96)
    floats = np.random.default_rng(0).standard_normal((16, 96), dtype=np.float32)
    plain = RawTensor("F32", (16, 96), floats.view(np.uint8).reshape(-1))
    packed = pack([narrow.encode(), wide.encode(), plain], pool)
    expected = np.concatenate([oracle(narrow, x), oracle(wide, x)], axis=1)
    assert np.array_equal(packed.matmul(x, pool)[:, :48], expected)
    assert np.allclose(packed.matmul(x, pool)[:, 48:64], x @ floats.T, rtol=1e-4, atol=1e-2)


def test_rows_that_are_not_numbers_stay_so(isa: str) -> None:
    x = random_rows(3, 96)
    x[1, 5] = np.nan
    out = products(random_matrix("a", (16, 96), 32, 8), x)
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()


def test_damaged_rows_are_refused() -> None:
    raw, pool = random_matrix("a", (16, 64), 32, 8).encode(), _native.ThreadPool(1)
    broken = raw.data.copy()
    broken[:4] = 255
    with pytest.raises(HeadraceError, match="not a number"):
        pack([RawTensor(raw.kind, raw.shape, broken)], pool)
    with pytest.raises(HeadraceError, match="takes 672 bytes, the file has 671"):
        pack([RawTensor(raw.kind, raw.shape, raw.data[:-1])], pool)
    rows, inputs = 1, 1024
    row = np.zeros(4 + inputs // 2 + 3 * inputs // 128, np.uint8)
    groups = row[4:].reshape(-1, 67)
    groups[:, 1:3] = np.frombuffer(np.int16(32767).tobytes(), np.uint8)
    with pytest.raises(HeadraceError, match="could leave 32 bits"):
        pack([RawTensor(kind_name(128, 8), (rows, inputs), row)], pool)
    assert dequantise(raw).shape == (16, 64)
