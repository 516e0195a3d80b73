"""Small statistics for measurements: percentiles, spread, and whether a stream kept its promise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

POINTS = (50, 90, 95, 99)
_SMOOTHING_SPAN = 16
_RARE = 5.0  # expected counts below which chi² is no chi²


@dataclass(frozen=True, slots=True)
class Summary:
    """What is kept of a list of measurements; every field has the unit of the values. ``count`` 0 has NaN elsewhere."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    minimum: float
    maximum: float


def percentile(ordered: Sequence[float], point: float) -> float:
    """The ``point``-th percentile (0 … 100) of ascending values, linear between neighbours; NaN for no values."""
    if not ordered:
        return math.nan
    position = (len(ordered) - 1) * point / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarize(values: Iterable[float]) -> Summary:
    """Count, mean, percentiles and extremes of the values."""
    ordered = sorted(values)
    if not ordered:
        return Summary(0, *[math.nan] * 7)
    p50, p90, p95, p99 = (percentile(ordered, point) for point in POINTS)
    return Summary(len(ordered), statistics.fmean(ordered), p50, p90, p95, p99, ordered[0], ordered[-1])


@dataclass(frozen=True, slots=True)
class Promise:
    """The service a client was promised (DeepSpeed-FastGen's effective throughput).

    The first token comes within ``prompt_tokens / prompt_rate`` seconds (at least ``first_floor`` seconds, so that a
    short prompt is not promised the impossible), and after it the smoothed gap never exceeds ``1 / stream_rate``.
    Rates in tokens/s.
    """

    prompt_rate: float = 512.0
    stream_rate: float = 4.0
    first_floor: float = 0.0


def keeps(promise: Promise, prompt_tokens: int, first: float, gaps: Sequence[float]) -> bool:
    """Whether one finished request kept the promise; ``first`` and ``gaps`` in seconds."""
    if first > max(prompt_tokens / promise.prompt_rate, promise.first_floor):
        return False
    return all(gap <= 1 / promise.stream_rate for gap in smoothed(gaps))


def smoothed(gaps: Sequence[float], span: int = _SMOOTHING_SPAN) -> list[float]:
    """Exponentially weighted mean after each gap; weights are normalised, so that the first gaps count fully."""
    decay = 1 - 2 / (span + 1)
    means: list[float] = []
    total = weight = 0.0
    for gap in gaps:
        total = total * decay + gap
        weight = weight * decay + 1
        means.append(total / weight)
    return means


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of pairwise ratios: what interleaved with/without runs should be compared by. NaN for no pairs."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True) if b]
    return statistics.median(ratios) if ratios else math.nan


@dataclass(slots=True)
class Fit:
    """Pearson's chi² of counts against chances, over several independent tables. ``total`` over ``freedom`` degrees."""

    total: float = 0.0
    freedom: int = 0

    def add(self, counts: Sequence[float], chances: Sequence[float]) -> None:
        """One table: chances add up to 1. Kinds that are expected less than five times count as one."""
        drawn = sum(counts)
        cells = [(count, drawn * chance) for count, chance in zip(counts, chances, strict=True)]
        rare = [cell for cell in cells if cell[1] < _RARE]
        cells = [cell for cell in cells if cell[1] >= _RARE]
        seen, mean = sum(count for count, _ in rare), sum(mean for _, mean in rare)
        if mean > 0.0:
            cells.append((seen, mean))
        elif seen:
            self.total = math.inf  # what can't be, was
        self.total += sum((count - mean) ** 2 / mean for count, mean in cells)
        self.freedom += max(0, len(cells) - 1)

    @property
    def p(self) -> float:
        """The chance that counts which follow the chances fit less well; Wilson's and Hilferty's approximation."""
        if not self.freedom:
            return 0.0 if self.total else 1.0
        spread = 2.0 / (9.0 * self.freedom)
        deviate = ((self.total / self.freedom) ** (1 / 3) - (1.0 - spread)) / math.sqrt(spread)
        return 0.5 * math.erfc(deviate / math.sqrt(2.0))
