"""Paged attention against a float64 oracle, and bit for bit against itself under every way of cutting the work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from chain_tools import PAGE_TOKENS, Piece, from_bf16, make_batch, to_bf16
from kv_codes import stored, turn, write

from headrace.kernels import _native
from headrace.kernels.formats import instruction_sets
from headrace.kernels.interface import KvFormat, kv_head_bytes

ISAS = [row.name for row in instruction_sets() if row.runnable and row.automatic]


@pytest.fixture(autouse=True)
def best_isa() -> Iterator[None]:
    yield
    _native.set_isa("auto")


@dataclass(frozen=True)
class Heads:
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    offset: int = 0
    kv: KvFormat = "bf16"

    @property
    def page_bytes(self) -> int:
        return self.offset + self.kv_heads * kv_head_bytes(self.kv, self.head_dim)

    @property
    def native(self) -> _native.AttentionShape:
        return _native.AttentionShape.of(self.heads, self.kv_heads, self.head_dim, self.window, self.offset, self.kv)


class Sequence:
    """Keys, values and queries of one sequence, and the pages that hold the keys and values."""

    def __init__(self, shape: Heads, length: int, generator: np.random.Generator) -> None:
        draw = generator.standard_normal
        self.shape, self.length = shape, length
        self.keys = draw((length, shape.kv_heads, shape.head_dim)).astype(np.float32)
        self.values = draw((length, shape.kv_heads, shape.head_dim)).astype(np.float32)
        spread = 2.0 / np.sqrt(shape.head_dim)
        self.queries = (spread * draw((length, shape.heads * shape.head_dim))).astype(np.float32)
        self.pages: list[int] = []

    def store(self, pool: npt.NDArray[np.uint8], free: list[int]) -> None:
        self.pages = [free.pop() for _ in range(-(-self.length // PAGE_TOKENS))]
        for position in range(self.length):
            page = pool[self.pages[position // PAGE_TOKENS]]
            _native.store_kv(self.shape.native, self.keys[position], self.values[position], position % PAGE_TOKENS, page)

    def seen_queries(self, row: int) -> npt.NDArray[np.float64]:
        """Bf16 pages meet queries in bf16 too, in powers of two."""
        queries: npt.NDArray[np.float32] = self.queries[row].reshape(self.shape.heads, self.shape.head_dim)
        if self.shape.kv != "bf16":
            return queries.astype(np.float64)
        powers = np.float32(np.log2(np.e))
        rounded: npt.NDArray[np.float64] = from_bf16(to_bf16(queries * powers)).astype(np.float64) / float(powers)
        return rounded

    def oracle(self, row: int) -> npt.NDArray[np.float64]:
        shape = self.shape
        first = max(0, row - shape.window + 1) if shape.window else 0
        keys = stored(self.keys[first : row + 1], shape.kv)
        values = stored(self.values[first : row + 1], shape.kv)
        queries = self.seen_queries(row)
        out = np.empty_like(queries)
        for head in range(shape.heads):
            own = head // (shape.heads // shape.kv_heads)
            scores = keys[:, own] @ queries[head]
            weights = np.exp(scores - scores.max())
            if shape.kv == "bf16" and len(weights) <= 512:  # rounded relative to the largest of a span
                weights = from_bf16(to_bf16(weights.astype(np.float32))).astype(np.float64)
            out[head] = weights @ values[:, own] / weights.sum()
        flat: npt.NDArray[np.float64] = out.reshape(-1)
        return flat


def build(shape: Heads, lengths: list[int], seed: int) -> tuple[list[Sequence], npt.NDArray[np.uint8]]:
    generator = np.random.default_rng(seed)
    sequences = [Sequence(shape, length, generator) for length in lengths]
    pages = sum(-(-length // PAGE_TOKENS) for length in lengths) + 2
    pool = np.full((pages, shape.page_bytes), 0xFF, np.uint8)
    free = list(generator.permutation(pages))
    for sequence in sequences:
        sequence.store(pool, free)
    return sequences, pool


def attend(
    shape: Heads,
    pool: npt.NDArray[np.uint8],
    parts: list[tuple[Sequence, int, int]],
    threads: int = 2,
    first_rows: npt.NDArray[np.int32] | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Results of rows first … last - 1 of each sequence, all in one call."""
    batch = make_batch([Piece([0] * (last - first), first, sequence.pages) for sequence, first, last in parts])
    queries = np.ascontiguousarray(np.concatenate([sequence.queries[first:last] for sequence, first, last in parts]))
    out = np.full_like(queries, np.nan)
    places = (batch.positions, batch.slice_starts, batch.page_starts, batch.page_ids)
    _native.attention(_native.ThreadPool(threads), shape.native, *places, pool, queries, out, first_rows)
    return np.split(out, batch.slice_starts[1:-1])


SHAPES = [
    Heads(9, 3, 64),
    Heads(4, 1, 256, window=100),
    Heads(4, 4, 32, offset=64),
    Heads(8, 2, 128, window=17),
    Heads(7, 1, 96, window=512),
    Heads(40, 1, 32),
]
FORMATS: tuple[KvFormat, ...] = ("bf16", "kv8", "kv4")
EVERY = [replace(shape, kv=kv) for shape in SHAPES for kv in FORMATS]


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_pages_are_written_as_in_numpy(kv: KvFormat, isa: str) -> None:
    _native.set_isa(isa)
    shape = Heads(4, 2, 96, offset=32, kv=kv)
    generator = np.random.default_rng(8)
    keys, values = generator.standard_normal((2, PAGE_TOKENS, 2, 96)).astype(np.float32)
    keys[3] += 40  # far from zero: the middle is rounded by more than a step
    keys[4], values[5, 1] = 7, 0  # all values the same
    values[6, :, 5] = 1e4  # one outlier takes all levels
    keys[7] *= 1e-36
    pages = np.zeros((2, shape.page_bytes), np.uint8)
    size = kv_head_bytes(kv, 96)
    for slot in range(PAGE_TOKENS):
        _native.store_kv(shape.native, keys[slot], values[slot], slot, pages[0])
        for head in range(2):
            write(pages[1, 32 + head * size : 32 + (head + 1) * size], slot, keys[slot, head], values[slot, head], kv)
    assert pages[0].tobytes() == pages[1].tobytes()


@pytest.mark.parametrize(("kv", "levels"), [("kv8", 255), ("kv4", 15)])
def test_a_stored_value_is_off_by_half_a_step(kv: KvFormat, levels: int) -> None:
    values = np.random.default_rng(9).normal(1.0, 3.0, (50, 64)).astype(np.float32)
    turned = turn(values)
    step = np.ptp(turned, axis=-1, keepdims=True) / levels
    # A little more at the ends, whose place is rounded to bf16.
    assert (np.abs(turn(stored(values, kv)) - turned) <= 0.5 * step * (1 + 2**-7) + 2**-8 * np.abs(turned)).all()


@pytest.mark.parametrize("shape", EVERY)
def test_ragged_batches_agree_with_float64(shape: Heads) -> None:
    sequences, pool = build(shape, [1, 5, 16, 33, 130, 700], 1)
    parts = [
        (sequence, max(0, sequence.length - take), sequence.length)
        for sequence, take in zip(sequences, (1, 5, 1, 20, 64, 1), strict=True)
    ]
    for (sequence, first, last), result in zip(parts, attend(shape, pool, parts), strict=True):
        exact = np.stack([sequence.oracle(row) for row in range(first, last)])
        # Coded formats take queries and weights in 14 bits; weights close to a bf16 border may be rounded to either side of it.
        np.testing.assert_allclose(result, exact, rtol=0, atol=2e-3 if shape.kv == "bf16" else 4e-3)
        assert np.abs(result - exact).mean() < 3e-4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", EVERY[:6])
def test_pages_in_a_row_are_read_as_by_the_table(shape: Heads, isa: str) -> None:
    _native.set_isa(isa)
    sequences, pool = build(shape, [1, 33, 130, 700], 1)
    parts = [(sequence, max(0, sequence.length - 20), sequence.length) for sequence in sequences]
    by_table = attend(shape, pool, parts)
    rows, firsts = [pool], []
    for sequence in sequences:
        firsts.append(sum(map(len, rows)))
        rows.append(pool[sequence.pages])
    firsts[1] = -1
    space = np.concatenate(rows)
    for sequence, first in zip(sequences, firsts, strict=True):
        if first >= 0:
            space[sequence.pages] = 0xFF  # not read there
    for one, other in zip(by_table, attend(shape, space, parts, first_rows=np.array(firsts, np.int32)), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(("value", "problem"), [(-2, "is -2"), (3, "is 3"), (2**30, "is 1073741824")])
def test_rows_outside_the_pool_are_refused(value: int, problem: str) -> None:
    shape = SHAPES[0]
    (sequence,), pool = build(shape, [40], 1)
    with pytest.raises(ValueError, match=rf"first_rows\[0\] {problem}"):
        attend(shape, pool, [(sequence, 39, 40)], first_rows=np.array([value], np.int32))
    with pytest.raises(ValueError, match="one entry a slice"):
        attend(shape, pool, [(sequence, 39, 40)], first_rows=np.array([0, 0], np.int32))


@pytest.mark.parametrize("shape", EVERY)
def test_no_cut_of_the_rows_changes_a_bit(shape: Heads) -> None:
    (sequence,), pool = build(shape, [1100 if shape.heads < 40 else 600], 2)
    (whole,) = attend(shape, pool, [(sequence, 0, sequence.length)])
    assert np.isfinite(whole).all()
    for size in (7, 16, 64, 333):
        for threads in (1, 2):
            cuts = [(sequence, first, min(first + size, sequence.length)) for first in range(0, sequence.length, size)]
            pieces = [attend(shape, pool, [cut], threads)[0] for cut in cuts]
            assert np.concatenate(pieces).tobytes() == whole.tobytes()
    rows = [0, 1, 15, 16, 63, 64, 127, 511, 512, 513, 599, *([1023, 1024, 1025, 1099] if shape.heads < 40 else [])]
    for row in rows:
        assert attend(shape, pool, [(sequence, row, row + 1)])[0].tobytes() == whole[row : row + 1].tobytes()


@pytest.mark.parametrize("shape", EVERY[:12])
def test_neighbours_change_nothing(shape: Heads) -> None:
    generator = np.random.default_rng(4)
    sequences, pool = build(shape, [int(n) for n in generator.integers(1, 600, 21)], 3)
    parts = []
    for sequence in sequences:
        first = int(generator.integers(0, sequence.length))
        parts.append((sequence, first, min(sequence.length, first + int(generator.integers(1, 80)))))
    together = attend(shape, pool, parts)
    for part, result in zip(parts, together, strict=True):
        assert attend(shape, pool, [part], 1)[0].tobytes() == result.tobytes()


@pytest.mark.parametrize("shape", EVERY)
def test_instruction_sets_agree_bit_for_bit(shape: Heads) -> None:
    sequences, pool = build(shape, [40, 530], 5)
    parts = [(sequences[0], 3, 40), (sequences[1], 529, 530)]
    results = []
    for isa in ISAS:
        _native.set_isa(isa)
        results.append(b"".join(result.tobytes() for result in attend(shape, pool, parts)))
    assert len(set(results)) == 1


def test_numbers_too_small_to_be_normal_are_zeros_everywhere() -> None:
    shape = Heads(4, 2, 64)
    (sequence,), _ = build(shape, [90], 10)
    generator = np.random.default_rng(11)
    for numbers in (sequence.keys, sequence.values, sequence.queries):
        np.multiply(numbers, 10.0 ** generator.uniform(-46, 0, numbers.shape).astype(np.float32), out=numbers)
    sequence.values[:, 0] = 10.0 ** generator.uniform(-46, -37, (90, 64)).astype(np.float32)
    pool = np.full((len(sequence.pages), shape.page_bytes), 0xFF, np.uint8)
    sequence.store(pool, list(range(len(pool))))
    results = []
    for isa in ISAS:
        _native.set_isa(isa)
        rows = attend(shape, pool, [(sequence, 0, 90)]) + attend(shape, pool, [(sequence, 89, 90)])
        results.append(b"".join(row.tobytes() for row in rows))
    assert len(set(results)) == 1
    assert not any(np.any((row != 0) & (np.abs(row) < 1e-38)) for row in rows)


@pytest.mark.parametrize("kv", FORMATS)
def test_extreme_scores_stay_finite(kv: KvFormat) -> None:
    shape = Heads(4, 2, 64, kv=kv)
    (sequence,), pool = build(shape, [90], 6)
    sequence.queries *= 1e6
    (result,) = attend(shape, pool, [(sequence, 0, 90)])
    exact = np.stack([sequence.oracle(row) for row in range(90)])
    if kv == "bf16":
        np.testing.assert_allclose(result, exact, rtol=0, atol=2e-3)
    assert np.isfinite(result).all()
    assert np.abs(result).max() < 2 * np.abs(sequence.values).max()


def test_bad_places_are_named() -> None:
    shape = Heads(4, 2, 64)
    (sequence,), pool = build(shape, [20], 7)
    sequence.pages = [sequence.pages[0], pool.shape[0]]
    with pytest.raises(ValueError, match=r"page_ids\[1\]"):
        attend(shape, pool, [(sequence, 0, 20)])
    sequence.pages = sequence.pages[:1]
    with pytest.raises(ValueError, match="positions"):
        attend(shape, pool, [(sequence, 0, 20)])
    with pytest.raises(ValueError, match="heads"):
        _native.AttentionShape.of(3, 2, 64, 0, 0, "bf16")
    with pytest.raises(ValueError, match="kv2"):
        _native.AttentionShape.of(4, 2, 64, 0, 0, "kv2")
