"""Matrices of extreme integer codes and what their products must be, to the bit: the slow reference of every native kernel.

QServe's ground for exactness: sums of integers have no rounding, so no tile, thread, instruction set or number of rows can change
them. All scales here are one, so that what a kernel returns is its integer sums and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from headrace.kernels._native import ThreadPool
from headrace.kernels.packing import pack
from headrace.models.quantised_matrix import QuantisedMatrix
from headrace.models.weights import RawTensor

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

WIDE_PEAK, NARROW_PEAK = 32512, 127  # largest activation code of 16 and of 8 bits: with it in a row the row's scale is 1


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One matrix: its encoded form, its integers [N, K] as float64, and the peak of its activations.

    ``folded``: inputs whose sums are folded into a float one after the other; 0: the whole sum is an integer.
    """

    tensor: RawTensor
    integers: Float64
    peak: int
    folded: int


def _extreme(rng: np.random.Generator, low: int, high: int, shape: tuple[int, ...]) -> Int64:
    """Uniform values, a third of them at the ends; whole runs of one end, so that sums are as large as they can be."""
    values = rng.integers(low, high + 1, shape)
    ends = rng.integers(0, 6, shape)
    values = np.where(ends == 0, low, np.where(ends == 1, high, values))
    values[: max(1, shape[0] // 8)] = high
    values[-max(1, shape[0] // 8) :] = low
    return values


def _half(value: float, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.broadcast_to(np.frombuffer(np.float16(value).tobytes(), np.uint8), (*shape, 2))


def grouped_4bit(rows: int, inputs: int, rng: np.random.Generator) -> Case:
    """GGUF's Q4_1 with scale 1 and minimum -8: groups of 32, activations of 16 bits."""
    codes = _extreme(rng, 0, 15, (rows, inputs)).reshape(rows, -1, 32)
    nibbles = (codes[..., :16] | codes[..., 16:] << 4).astype(np.uint8)
    places = codes.shape[:2]
    data = np.concatenate([_half(1.0, places), _half(-8.0, places), nibbles], axis=2).reshape(-1)
    integers = codes.reshape(rows, inputs) - 8
    return Case(RawTensor("Q4_1", (rows, inputs), data), integers.astype(np.float64), WIDE_PEAK, 32)


def grouped_8bit(rows: int, inputs: int, rng: np.random.Generator) -> Case:
    """GGUF's Q8_0 with scale 1: groups of 32, activations of 16 bits."""
    codes = _extreme(rng, -128, 127, (rows, inputs)).reshape(rows, -1, 32)
    places = codes.shape[:2]
    data = np.concatenate([_half(1.0, places), codes.astype(np.int8).view(np.uint8)], axis=2).reshape(-1)
    return Case(RawTensor("Q8_0", (rows, inputs), data), codes.reshape(rows, inputs).astype(np.float64), WIDE_PEAK, 32)


def channel_4bit(group: int, bits: int, rows: int, inputs: int, rng: np.random.Generator) -> Case:
    """4-bit codes with integer scales and zeros a group, one float a channel; scales beyond what byte products hold, too."""
    groups = (rows, -(-inputs // group))
    codes = _extreme(rng, 0, 15, (rows, inputs))
    scales = _extreme(rng, 1, 17, groups)
    scales[::3] = _extreme(rng, 1, 255, scales[::3].shape)
    matrix = QuantisedMatrix(
        "a", (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8), scales.astype(np.uint8),
        _extreme(rng, -4000, 4000, groups).astype(np.int16), np.ones(rows, np.float32), group, bits,
    )  # fmt: skip
    return Case(matrix.encode(), matrix.integers().astype(np.float64), WIDE_PEAK if bits == 16 else NARROW_PEAK, 0)


def channel_8bit(bits: int, rows: int, inputs: int, rng: np.random.Generator) -> Case:
    """8-bit codes, one float a channel."""
    codes = _extreme(rng, -128, 127, (rows, inputs)).astype(np.int8)
    matrix = QuantisedMatrix("a", codes, None, None, np.ones(rows, np.float32), 0, bits)
    return Case(matrix.encode(), codes.astype(np.float64), WIDE_PEAK if bits == 16 else NARROW_PEAK, 0)


def extreme_rows(count: int, inputs: int, peak: int, rng: np.random.Generator) -> Float32:
    """Rows of whole numbers up to ``peak``, which each of them holds."""
    values = _extreme(rng, -peak, peak, (count, inputs))
    values[np.arange(count), rng.integers(0, inputs, count)] = peak
    return values.astype(np.float32)


def reference(case: Case, x: Float32) -> Float32:
    """What every kernel must return for rows ``x``, [rows, N]: exact sums; groups are added to a float32 in their order."""
    wide = x.astype(np.float64)
    if not case.folded:
        return np.asarray((wide @ case.integers.T).astype(np.float32))
    # with a minimum, code and minimum are added one after the other, as the format says
    minimum = -8.0 if case.tensor.kind == "Q4_1" else 0.0
    total = np.zeros((len(x), len(case.integers)), np.float32)
    for start in range(0, x.shape[1], case.folded):
        part = slice(start, start + case.folded)
        sums = wide[:, part] @ (case.integers[:, part] - minimum).T
        total = (total + sums.astype(np.float32).astype(np.float64)).astype(np.float32)
        if minimum:
            total = (total + minimum * wide[:, part].sum(axis=1, keepdims=True)).astype(np.float32)
    return total


def mismatches(case: Case, x: Float32, row_counts: tuple[int, ...], pools: tuple[ThreadPool, ...]) -> tuple[int, int]:
    """(values that differ from the reference, values compared) over row counts and thread pools, on the present instruction set."""
    wanted = reference(case, x)
    matrix = pack([case.tensor], pools[0])
    wrong = seen = 0
    for count in row_counts:
        for pool in pools:
            got = matrix.matmul(np.ascontiguousarray(x[:count]), pool)[:, : wanted.shape[1]]
            wrong += int((got != wanted[:count]).sum())
            seen += got.size
    return wrong, seen


Make = Callable[[int, int, np.random.Generator], Case]


def _cases() -> dict[str, tuple[str, Make]]:
    cases: dict[str, tuple[str, Make]] = {
        "4bit_groups": ("4-bit codes in float groups of 32 with 16-bit rows", grouped_4bit),
        "8bit_groups": ("8-bit codes in float groups of 32 with 16-bit rows", grouped_8bit),
    }
    for bits in (8, 16):
        for group in (32, 64, 128):
            what = f"4-bit codes in integer groups of {group} with {bits}-bit rows"
            cases[f"w4g{group}_a{bits}"] = (what, partial(channel_4bit, group, bits))
        cases[f"w8_a{bits}"] = (f"8-bit codes with {bits}-bit rows", partial(channel_8bit, bits))
    return cases


CASES = _cases()
"""What is compared: a short name, how it is called in a table, and how a matrix of it is made."""
