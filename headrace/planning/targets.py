"""What is promised, and how many requests got it: joint attainment, as DistServe and its successors measure it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.planning.cluster import Outcome, Served


@dataclass(frozen=True, slots=True)
class Targets:
    """A request keeps its promise when its first token comes within ``ttft`` seconds **and** its tokens come every ``tpot``
    seconds on average; ``share`` of all requests must."""

    ttft: float
    tpot: float
    share: float = 0.9

    def met(self, served: Served) -> bool:
        """Whether one request got what was promised."""
        return served.ttft <= self.ttft and served.tpot <= self.tpot


def attainment(outcome: Outcome, targets: Targets) -> float:
    """Share of requests that met both targets; those that were refused did not."""
    met = sum(targets.met(served) for served in outcome.served)
    return met / max(1, len(outcome.served) + outcome.refused)


def interval(share: float, count: int) -> tuple[float, float]:
    """Where the true share lies with 95 %, if the requests are a sample (Wilson's interval)."""
    z, n = 1.96, max(1, count)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def tail(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; NaN for no values."""
    ordered = sorted(value for value in values if not math.isnan(value))
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan
