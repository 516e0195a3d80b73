"""The model of the tile unit against numpy, its faults, and the way the emulated kernels use it."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised_blocks import random_blocks

from headrace.kernels import _native
from headrace.kernels.formats import instruction_sets
from headrace.models.integer_rows import GROUP_OF_KIND, sample_rows

Bytes = npt.NDArray[np.uint8]
SIGNS = {"ss": (np.int8, np.int8), "su": (np.int8, np.uint8), "us": (np.uint8, np.int8), "uu": (np.uint8, np.uint8)}


def shape_bytes(rows: dict[int, int], row_bytes: dict[int, int], palette: int = 1, start: int = 0, reserved: int = 0) -> Bytes:
    """The 64 bytes of a shape."""
    sizes, counts = [row_bytes.get(t, 0) for t in range(16)], [rows.get(t, 0) for t in range(16)]
    packed = struct.pack("<BBB13x16H16B", palette, start, reserved, *sizes, *counts)
    return np.frombuffer(packed, np.uint8)


def product_shape(rows: int, depth: int, columns: int) -> Bytes:
    """Tile 0: sums, 1: first operand, 2: second operand."""
    return shape_bytes({0: rows, 1: rows, 2: depth // 4}, {0: 4 * columns, 1: depth, 2: 4 * columns})


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 16),
    quads=st.integers(1, 16),
    columns=st.integers(1, 16),
    signs=st.sampled_from(sorted(SIGNS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_equal_numpy(rows: int, quads: int, columns: int, signs: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = SIGNS[signs]
    a = rng.integers(0, 256, (rows, 4 * quads), dtype=np.uint8)
    b = rng.integers(0, 256, (quads, 4 * columns), dtype=np.uint8)
    start = rng.integers(-(2**31), 2**31, (rows, columns)).astype(np.int32)
    model = _native.TileModel()
    model.configure(product_shape(rows, 4 * quads, columns))
    model.load(0, start.view(np.uint8))
    model.load(1, a)
    model.load(2, b)
    model.dot(0, 1, 2, signs)
    lines = b.view(second).reshape(quads, columns, 4).transpose(0, 2, 1).reshape(4 * quads, columns).astype(np.int64)
    wanted = start + a.view(first).astype(np.int64) @ lines
    got = np.frombuffer(model.store(0), np.int32).reshape(rows, columns)
    np.testing.assert_array_equal(got, wanted.astype(np.int32))  # the sums wrap
    assert model.store(1) == a.tobytes()


def test_a_load_keeps_the_row_stride_and_a_shape_clears_everything() -> None:
    model = _native.TileModel()
    model.configure(shape_bytes({3: 4}, {3: 8}))
    model.load(3, np.arange(4 * 24, dtype=np.uint8).reshape(4, 24))
    assert list(model.store(3)) == [24 * row + byte for row in range(4) for byte in range(8)]
    model.zero(3)
    assert not any(model.store(3))
    model.load(3, np.ones((4, 8), np.uint8))
    model.configure(shape_bytes({3: 4}, {3: 8}))
    assert not any(model.store(3))


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        (shape_bytes({0: 1}, {0: 64}, palette=2), "palette"),
        (shape_bytes({0: 1}, {0: 64}, start=1), "start row"),
        (shape_bytes({0: 1}, {0: 64}, reserved=9), "reserved"),
        (shape_bytes({0: 17}, {0: 64}), "too large"),
        (shape_bytes({0: 16}, {0: 68}), "too large"),
        (shape_bytes({0: 16}, {}), "not both"),
        (shape_bytes({}, {5: 4}), "not both"),
        (shape_bytes({8: 1}, {8: 4}), "there are 8"),
    ],
)
def test_bad_shapes_fault(shape: Bytes, what: str) -> None:
    with pytest.raises(RuntimeError, match=what):
        _native.TileModel().configure(shape)


def test_misuse_faults() -> None:
    model = _native.TileModel()
    with pytest.raises(RuntimeError, match="no shape"):
        model.zero(0)
    model.configure(product_shape(4, 32, 16))
    with pytest.raises(RuntimeError, match="three different"):
        model.dot(0, 0, 2, "su")
    with pytest.raises(RuntimeError, match="do not fit"):
        model.dot(0, 2, 1, "su")
    with pytest.raises(RuntimeError, match="no shape"):
        model.dot(0, 1, 3, "su")
    with pytest.raises(RuntimeError, match="no shape"):
        model.load(9, np.zeros((16, 64), np.uint8))
    model.configure(shape_bytes({0: 4, 1: 4, 2: 8}, {0: 62, 1: 32, 2: 62}))
    with pytest.raises(RuntimeError, match="dwords"):
        model.dot(0, 1, 2, "su")
    model.release()
    with pytest.raises(RuntimeError, match="no shape"):
        model.store(0)


@pytest.mark.parametrize(("rows", "tiled"), [(1, False), (7, False), (8, True), (16, True), (23, True), (64, True)])
def test_every_thread_configures_for_itself_and_releases(rows: int, tiled: bool) -> None:
    raw = random_blocks("Q4_1", 320, 64, np.random.default_rng(0))
    pool = _native.ThreadPool(3)
    matrix = _native.PackedMatrix.pack([(raw, "Q4_1", 320, 64, None)], pool)
    held, before = _native.tile_model_use()
    try:
        _native.set_isa("amx-emulated")
        matrix.matmul(np.ones((rows, 64), np.float32), pool)
    finally:
        _native.set_isa("auto")
    assert held == 0
    assert _native.tile_model_use()[0] == 0
    assert (_native.tile_model_use()[1] > before) is tiled


@pytest.mark.parametrize("kind", ["Q4_1A8", "INT8A16", "INT4G64A8"])
def test_other_rows_and_integer_formats_run_on_tiles_too(kind: str) -> None:
    rng, pool = np.random.default_rng(0), _native.ThreadPool(1)
    data = sample_rows(kind, 32, 96, rng) if kind in GROUP_OF_KIND else random_blocks("Q4_1", 32, 96, rng)
    matrix, before = _native.PackedMatrix.pack([(data, kind, 32, 96, None)], pool), _native.tile_model_use()[1]
    try:
        _native.set_isa("amx-emulated")
        matrix.matmul(np.ones((16, 96), np.float32), pool)
    finally:
        _native.set_isa("auto")
    assert _native.tile_model_use()[1] > before


def test_the_model_is_never_chosen_by_itself() -> None:
    row = next(row for row in instruction_sets() if row.name == "amx-emulated")
    assert not row.automatic
    _native.set_isa("auto")
    assert _native.isa() != "amx-emulated"


def test_what_cannot_run_says_why() -> None:
    for row in instruction_sets():
        assert row.runnable == (not row.lacking)
        if not row.runnable:
            with pytest.raises(ValueError, match="on this machine: "):
                _native.set_isa(row.name)
