"""The knee of throughput over step size: how many tokens a step should aim at on this machine with these weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headrace.scheduling.composer import ROW_TILE

SATURATED = 0.97
LARGEST = 1024


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
KNEE_STEPS = tuple(CalibrationStep(size // ROW_TILE, ROW_TILE, 0) for size in (16, 32, 64, 128, 256))
# Decodes and chunks far into a context: only for Cost, which needs tokens, pairs and logit rows to vary independently.
CONTEXT_STEPS = tuple(
    CalibrationStep(*shape)
    for shape in ((1, 1, 0), (1, 1, 1023), (1, 3, 255), (3, 1, 127), (5, 1, 127), (8, 1, 255), (16, 1, 511), (1, 64, 960))
)


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
    """The smallest step size with 97 % of the throughput of the largest, or the largest that fits the gap if that is smaller.

    Throughput over step size rises while weights are streamed and then stays flat (DeepSpeed-FastGen); beyond the knee a
    larger step only makes streams wait. The times of all sizes are fitted by a straight line, so that one disturbed size
    can't move the knee; of several samples of a size the fastest counts, because noise only ever adds. Sizes are multiples
    of 16 rows up to 1,024. Raises ``ValueError`` without samples.
    """
    fastest: dict[int, float] = {}
    for sample in samples:
        fastest[sample.tokens] = min(sample.seconds, fastest.get(sample.tokens, sample.seconds))
    if not fastest:
        raise ValueError("no calibration samples")
    base, slope = _line(fastest)
    sizes = [(tokens, base + slope * tokens) for tokens in range(ROW_TILE, LARGEST + 1, ROW_TILE)]
    plateau = max(tokens / seconds for tokens, seconds in sizes)
    tokens, seconds = next(size for size in sizes if size[0] / size[1] >= SATURATED * plateau)
    if gap_seconds is not None and seconds > gap_seconds:
        tokens, seconds = max((size for size in sizes if size[1] <= gap_seconds), default=sizes[0])
    return Knee(tokens, seconds, tokens / seconds, plateau)


def _line(times: Mapping[int, float]) -> tuple[float, float]:
    """(seconds of any step, seconds a row): least squares of relative errors, neither negative, the sum positive."""
    weights = {tokens: seconds**-2 for tokens, seconds in times.items()}
    total = sum(weights.values())
    mean_tokens = sum(weight * tokens for tokens, weight in weights.items()) / total
    mean_seconds = sum(weight * times[tokens] for tokens, weight in weights.items()) / total
    spread = sum(weight * (tokens - mean_tokens) ** 2 for tokens, weight in weights.items())
    if spread == 0.0:
        return 0.0, mean_seconds / mean_tokens
    slope = sum(weight * (tokens - mean_tokens) * times[tokens] for tokens, weight in weights.items()) / spread
    base = mean_seconds - slope * mean_tokens
    if slope < 0.0:
        return mean_seconds, 0.0
    if base < 0.0:
        squares = sum(weight * tokens**2 for tokens, weight in weights.items())
        return 0.0, sum(weight * tokens * times[tokens] for tokens, weight in weights.items()) / squares
    return base, slope
