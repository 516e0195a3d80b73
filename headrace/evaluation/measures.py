"""What is measured of several servers in turns, and how they compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

OWN = "headrace"

Progress = Callable[[str, int, int], None]
"""What is being done, parts done, parts in all."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing measured of every server: ``values`` by server, one a round, in ``unit``; NaN where it failed.

    ``lower``: less is better.
    """

    what: str
    unit: str
    values: dict[str, list[float]]
    lower: bool = False

    def median(self, server: str) -> float:
        """Median over the rounds that gave a number; NaN without any."""
        known = [value for value in self.values[server] if math.isfinite(value)]
        return statistics.median(known) if known else math.nan

    def ratio(self, server: str, to: str) -> float:
        """How many times better ``server`` is: median of the ratios round by round, since a machine that drifts moves both."""
        pairs = zip(self.values[server], self.values[to], strict=True)
        ratios = [(b / a if self.lower else a / b) for a, b in pairs if math.isfinite(a) and math.isfinite(b) and a and b]
        return statistics.median(ratios) if ratios else math.nan

    def lead(self) -> float:
        """How many times better headrace is than the best of the others; NaN without others."""
        ratios = [self.ratio(OWN, name) for name in self.values if name != OWN]
        return min((ratio for ratio in ratios if math.isfinite(ratio)), default=math.nan)


@dataclass(slots=True)
class Comparison:
    """All measures, and what went wrong on the way: one line each."""

    measures: list[Measure]
    notes: list[str] = field(default_factory=list)
