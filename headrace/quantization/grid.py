"""Grids of representable values: every weight of a group lies on scale · code + offset, and both levels are integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from headrace.quantization.protective_range import LARGEST_CODE, LARGEST_INTEGER, group_scale, protective_bound, safe_zero

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
_Array = TypeVar("_Array", Float32, Int32)

_GROUP_SHRINKS = 4  # integer steps that a group's own step may be shortened by
_CHANNEL_RATIOS = np.linspace(1.0, 0.7, 16, dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The values that a matrix [N, K] may take.

    ``channel_scales``: float32 [N]. 4 bits: ``scales`` and ``zeros`` int [N, G] over ``group`` inputs, codes 0 … 15 and
    value = channel_scale · (code · scale - zero). 8 bits: both ``None``, ``group`` 0, codes -127 … 127.
    """

    channel_scales: Float32
    scales: Int32 | None = None
    zeros: Int32 | None = None
    group: int = 0

    @property
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest code."""
        return (-LARGEST_INTEGER, LARGEST_INTEGER) if self.scales is None else (0, LARGEST_CODE)

    def steps(self, inputs: int) -> tuple[Float32, Float32]:
        """Per group: the distance of neighbouring values and the value of code 0, both [G, N]; group of input k: k // group."""
        if self.scales is None or self.zeros is None:
            return self.channel_scales[None], np.zeros((1, len(self.channel_scales)), np.float32)
        scale = self.channel_scales[:, None] * self.scales
        return np.ascontiguousarray(scale.T), np.ascontiguousarray((-self.channel_scales[:, None] * self.zeros).T)

    def round(self, values: Float32) -> Int32:
        """The nearest code of each value, [N, K]."""
        step, first = (self._spread(side, values.shape[1]) for side in self.steps(values.shape[1]))
        low, high = self.code_range
        return np.asarray(np.clip(np.rint((values - first) / step), low, high), np.int32)

    def values(self, codes: Int32) -> Float32:
        """What the codes stand for, [N, K]: exactly the values of the runtime format."""
        integers = codes
        if self.scales is not None and self.zeros is not None:
            integers = codes * self._repeat(self.scales, codes.shape[1]) - self._repeat(self.zeros, codes.shape[1])
        return np.asarray(integers.astype(np.float32) * self.channel_scales[:, None])

    def snap(self, values: Float32) -> Float32:
        """Plain rounding: the nearest representable values."""
        return self.values(self.round(values))

    def _spread(self, side: Float32, inputs: int) -> Float32:
        return side.T if self.scales is None else self._repeat(side.T, inputs)

    def _repeat(self, side: _Array, inputs: int) -> _Array:
        return np.repeat(side, self.group, axis=1)[:, :inputs]


def channel_scales(values: Float32, bound: int) -> Float32:
    """One scale an output channel, so that its largest weight becomes ``bound``; 1 where all weights are zero."""
    peak = np.abs(values).max(axis=1)
    return np.where(peak > 0, peak / np.float32(bound), np.float32(1.0)).astype(np.float32)


def progressive_grid(values: Float32, group: int, importance: Float32 | None = None) -> Grid:
    """QoQ's two levels: int8 per output channel, then 4 bits per group of these integers.

    ``importance`` [K] (mean square of each input): groups may then cut their extremes off where that costs less than it gains.
    """
    bound = protective_bound()
    scale = channel_scales(values, bound)
    integers = np.clip(np.rint(values / scale[:, None]), -bound, bound)
    low, high = _spans(integers, group)
    steps = group_scale(low, high)
    zeros = safe_zero(low, steps)
    if importance is not None:
        steps, zeros = _shrunk(values / scale[:, None], steps, low, high, (group, importance))
    return Grid(scale, steps.astype(np.int32), zeros.astype(np.int32), group)


def channel_grid(values: Float32, importance: Float32 | None = None) -> Grid:
    """8 bits, one scale an output channel.

    ``importance`` [K]: the scale is searched among shrunk ones for the least error weighted by it.
    """
    peak = channel_scales(values, LARGEST_INTEGER)
    if importance is None:
        return Grid(peak)
    best, least = peak, np.full(len(values), np.inf)
    for ratio in _CHANNEL_RATIOS:
        grid = Grid(peak * ratio)
        error = ((grid.snap(values) - values) ** 2 @ importance).astype(np.float64)
        better = error < least
        best, least = np.where(better, grid.channel_scales, best), np.where(better, error, least)
    return Grid(best.astype(np.float32))


def _spans(integers: Float32, group: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Smallest and largest integer of each group, [N, G]; the last group may be shorter."""
    starts = np.arange(0, integers.shape[1], group)
    low = np.minimum.reduceat(integers, starts, axis=1)
    high = np.maximum.reduceat(integers, starts, axis=1)
    return low.astype(np.int64), high.astype(np.int64)


def _shrunk(
    scaled: Float32,
    steps: npt.NDArray[np.int64],
    low: npt.NDArray[np.int64],
    high: npt.NDArray[np.int64],
    weighting: tuple[int, Float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Steps and zeros of least weighted error among shorter steps, cut off below, above or on both sides."""
    group, importance = weighting
    starts = np.arange(0, scaled.shape[1], group)
    best_steps, best_zeros = steps, safe_zero(low, steps)
    least = np.full(steps.shape, np.inf)
    ones = np.ones(len(scaled), np.float32)
    for shrink in range(_GROUP_SHRINKS):
        shorter = np.maximum(1, steps - shrink)
        spare = np.maximum(0, high - low - LARGEST_CODE * shorter)
        for share in (0, 1, 2) if shrink else (0,):
            first = low + spare * share // 2
            zeros = safe_zero(first, shorter)
            grid = Grid(ones, shorter.astype(np.int32), zeros.astype(np.int32), group)
            error = np.add.reduceat((grid.snap(scaled) - scaled) ** 2 * importance, starts, axis=1)
            better = error < least
            least = np.where(better, error, least)
            best_steps, best_zeros = np.where(better, shorter, best_steps), np.where(better, zeros, best_zeros)
    return best_steps, best_zeros
