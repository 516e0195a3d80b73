"""Latencies over time: counts by size and by 10 seconds, from which any percentile and any target can be read later."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

WINDOW_SECONDS = 10.0
WINDOWS = 180
LEAST_SECONDS = 0.0005
PER_DECADE = 20
MOST_BUCKETS = 6 * PER_DECADE
"""0.5 ms … 500 s in steps of 12 %."""


@dataclass(slots=True)
class Window:
    """Counts of one stretch of time by bucket (see :func:`bucket_of`). ``at``: its beginning, seconds since 1970."""

    at: float
    first: dict[int, int] = field(default_factory=dict)
    gap: dict[int, int] = field(default_factory=dict)


class LatencyWindows:
    """The newest half hour. Empty stretches take no room. ``clock`` gives seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._windows: deque[Window] = deque(maxlen=WINDOWS)

    def first_token(self, seconds: float) -> None:
        """A request got its first token so long after it had come."""
        _count(self._now().first, seconds, 1)

    def gaps(self, seconds: float, count: int) -> None:
        """``count`` tokens came so long after the one before each."""
        _count(self._now().gap, seconds, count)

    def read(self) -> list[Window]:
        """The windows that are not older than half an hour, the oldest first."""
        oldest = self._clock() - WINDOW_SECONDS * WINDOWS
        return [window for window in self._windows if window.at >= oldest]

    def _now(self) -> Window:
        at = self._clock() // WINDOW_SECONDS * WINDOW_SECONDS
        if not self._windows or self._windows[-1].at != at:
            self._windows.append(Window(at))
        return self._windows[-1]


def bucket_of(seconds: float) -> int:
    """The bucket of a time: number *b* holds those above :func:`edge_of` (*b*) and up to that of *b* + 1."""
    if seconds <= LEAST_SECONDS:
        return 0
    return min(math.ceil(math.log10(seconds / LEAST_SECONDS) * PER_DECADE) - 1, MOST_BUCKETS - 1)


def edge_of(bucket: int) -> float:
    """Lower edge of a bucket in seconds."""
    return float(LEAST_SECONDS * 10.0 ** (bucket / PER_DECADE))


def quantile(counts: dict[int, int], share: float) -> float:
    """The time below which ``share`` of the counted ones lie, in seconds and right to one bucket; NaN when nothing was counted."""
    left = share * sum(counts.values())
    for bucket in sorted(counts):
        left -= counts[bucket]
        if left <= 0:
            return edge_of(bucket + 1)
    return math.nan


def _count(counts: dict[int, int], seconds: float, count: int) -> None:
    bucket = bucket_of(seconds)
    counts[bucket] = counts.get(bucket, 0) + count
