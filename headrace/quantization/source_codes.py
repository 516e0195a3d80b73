"""A 4-bit file's own codes under integer scales: nothing is rounded but the scales and minima of its groups.

Rounding a 4-bit grid onto another one costs about as much as the first rounding did. Here the nibbles stay, in their groups of
32, and only scale · nibble + minimum is expressed anew as channel scale · (nibble · integer - zero), with 8 bits for the integer
and 16 for the zero: QServe's two levels ("W4A8KV4 quantization and system co-design", Lin et al.) for codes that exist already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.models.nibble_groups import GROUP, NibbleGroups
from headrace.models.quantised_matrix import MAX_ACCUMULATOR, MAX_ACTIVATION
from headrace.quantization.grid import Float32, Grid
from headrace.quantization.layers import Codes
from headrace.quantization.protective_range import LARGEST_CODE

LARGEST_SCALE = 255
_LARGEST_ZERO = 2**15 - 1
# Integers that a row's largest group scale becomes. All fine ones compete; the coarse ones are for rows whose products
# could leave 32 bits, or whose minima are far larger than their scales.
_LARGEST = (*range(LARGEST_SCALE, 159, -3), 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Per group [N, G]: ``scales`` ≥ 0, ``minima``, and of its codes the mean, the sum of squares about it, the ends."""

    scales: Float64
    minima: Float64
    mean: Float64
    spread: Float64
    low: Float64
    high: Float64


def keep_codes(source: NibbleGroups) -> Codes:
    """The same nibbles (mirrored where a group's scale is negative) on the integer grid of least squared weight error per row.

    The largest group scale of a row tries some integers; with each, zeros are the nearest for the codes that occur, and the
    channel scale is what fits best. Raises ``model_file`` for scales that are not finite.
    """
    if not (np.isfinite(source.scales).all() and np.isfinite(source.minima).all()):
        raise HeadraceError("model_file", "a weight's scale or minimum is infinite or not a number; repair the source")
    rows, inputs = source.codes.shape
    codes = source.codes.reshape(rows, -1, GROUP)
    negative = source.scales < 0
    codes = np.where(negative[..., None], LARGEST_CODE - codes, codes).astype(np.uint8)
    scales, minima = source.scales.astype(np.float64), source.minima.astype(np.float64)
    groups = _measure(codes, np.abs(scales), np.where(negative, minima + LARGEST_CODE * scales, minima))
    peak = groups.scales.max(axis=1)
    peak = np.where(peak > 0, peak, np.maximum(np.abs(groups.minima).max(axis=1), 1e-30))
    least = np.full(rows, np.inf)
    best = (np.ones(rows), np.zeros_like(scales), np.zeros_like(scales))
    for largest in _LARGEST:
        channel, whole, zeros, error = _try(groups, peak / largest)
        better = error < least
        least = np.where(better, error, least)
        best = (
            np.where(better, channel, best[0]),
            np.where(better[:, None], whole, best[1]),
            np.where(better[:, None], zeros, best[2]),
        )
    grid = Grid(best[0].astype(np.float32), best[1].astype(np.int32), best[2].astype(np.int32), GROUP)
    return Codes(codes.reshape(rows, inputs).astype(np.int32), grid)


def _measure(codes: npt.NDArray[np.uint8], scales: Float64, minima: Float64) -> _Groups:
    total = codes.sum(axis=2, dtype=np.int64)
    squares = np.square(codes, dtype=np.int32).sum(axis=2, dtype=np.int64)
    mean = total / GROUP
    low, high = codes.min(axis=2).astype(np.float64), codes.max(axis=2).astype(np.float64)
    return _Groups(scales, minima, mean, squares - total * mean, low, high)


def _try(groups: _Groups, channel: Float64) -> tuple[Float64, Float64, Float64, Float64]:
    """Channel scales fitted again, integer scales and zeros, and each row's squared error (infinite: it can't be stored)."""
    unit = channel[:, None]
    whole = np.minimum(np.rint(groups.scales / unit), LARGEST_SCALE)
    # What the scale's rounding adds at the mean code, the zero takes away: only distances from the mean are left wrong.
    middle = groups.mean * groups.scales + groups.minima
    zeros = np.clip(np.rint(groups.mean * whole - middle / unit), -_LARGEST_ZERO, _LARGEST_ZERO)
    level = groups.mean * whole - zeros
    product = (whole * groups.scales * groups.spread + GROUP * level * middle).sum(axis=1)
    square = (whole * whole * groups.spread + GROUP * level * level).sum(axis=1)
    fitted = np.where(square > 0, product / np.where(square > 0, square, 1), channel)
    fitted = fitted.astype(np.float32).astype(np.float64)
    slope, shift = fitted[:, None] * whole - groups.scales, fitted[:, None] * level - middle
    error = (slope * slope * groups.spread + GROUP * shift * shift).sum(axis=1)
    ends = np.maximum(np.abs(groups.low * whole - zeros), np.abs(groups.high * whole - zeros))
    return fitted, whole, zeros, np.where(GROUP * ends.sum(axis=1) * MAX_ACTIVATION <= MAX_ACCUMULATOR, error, np.inf)


def squared_error(kept: Codes, values: Float32) -> float:
    """Squared weight error relative to the squared weights: its root is the relative error."""
    return float(np.square(kept.values() - values, dtype=np.float64).sum() / np.square(values, dtype=np.float64).sum())
