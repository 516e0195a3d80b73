"""The knee of throughput over step size: how many tokens a step should aim at on this machine with these weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from headrace.scheduling.composer import ROW_TILE

SATURATED = 0.96


@dataclass(frozen=True, slots=True)
class CalibrationStep:
    """A step to measure at start: ``slices`` items, each computing ``count`` tokens from position ``start``."""

    slices: int
    count: int
    start: int

    @property
    def tokens(self) -> int:
        """Rows computed."""
        return self.slices * self.count

    @property
    def pairs(self) -> int:
        """Query-key pairs."""
        return self.slices * (self.count * self.start + self.count * (self.count + 1) // 2)


# Steps of many short prompts: their share of attention is the same for each size, so throughput shows the weights' knee alone.
KNEE_STEPS = tuple(CalibrationStep(size // ROW_TILE, ROW_TILE, 0) for size in (16, 32, 64, 128, 256, 512, 1024))
# Decodes and chunks far into a context: only for Cost, which needs tokens, pairs and logit rows to vary independently.
CONTEXT_STEPS = tuple(CalibrationStep(*shape) for shape in ((1, 1, 0), (1, 1, 1023), (8, 1, 255), (16, 1, 511), (1, 64, 960)))


@dataclass(frozen=True, slots=True)
class StepSample:
    """One of :data:`KNEE_STEPS` was measured: ``tokens`` rows took ``seconds``."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Knee:
    """A chosen step size: its expected ``seconds``, its ``throughput`` and the best one seen, in tokens a second."""

    tokens: int
    seconds: float
    throughput: float
    plateau: float


def find_knee(samples: Iterable[StepSample], gap_seconds: float | None = None) -> Knee:
    """The smallest step size with 96 % of the plateau's throughput, or the largest that fits the gap if that is smaller.

    Throughput over step size rises while weights are streamed and then stays flat (DeepSpeed-FastGen); beyond the knee a
    larger step only makes streams wait. Sizes are multiples of 16 rows; times between measured sizes are interpolated, and
    of several samples of a size the fastest counts, because noise only ever adds. Raises ``ValueError`` without samples.
    """
    fastest: dict[int, float] = {}
    for sample in samples:
        fastest[sample.tokens] = min(sample.seconds, fastest.get(sample.tokens, sample.seconds))
    if not fastest:
        raise ValueError("no calibration samples")
    sizes = _candidates(sorted(fastest.items()))
    plateau = max(tokens / seconds for tokens, seconds in sizes)
    tokens, seconds = next(size for size in sizes if size[0] / size[1] >= SATURATED * plateau)
    if gap_seconds is not None and seconds > gap_seconds:
        tokens, seconds = max((size for size in sizes if size[1] <= gap_seconds), default=sizes[0])
    return Knee(tokens, seconds, tokens / seconds, plateau)


def _candidates(measured: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """(size, seconds) for each measured size and each multiple of 16 between them."""
    sizes = [measured[0]]
    for (low, low_seconds), (high, high_seconds) in pairwise(measured):
        slope = (high_seconds - low_seconds) / (high - low)
        between = range((low // ROW_TILE + 1) * ROW_TILE, high, ROW_TILE)
        sizes += [(size, low_seconds + slope * (size - low)) for size in between]
        sizes.append((high, high_seconds))
    return sizes
