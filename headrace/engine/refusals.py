"""Who was turned away at a door, by reason: each is counted, and few are logged."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

QUIET_SECONDS = 600.0
"""After a line in the log, others with the same reason are only counted for so long."""


class Refusals:
    """Counts of one door. ``what``: is refused there. Safe to use from several threads."""

    def __init__(self, logger: logging.Logger, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._what = what
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._said: dict[str, tuple[float, int]] = {}  # by reason: when it was logged last, and the count then
        self._lock = threading.Lock()

    def __getitem__(self, reason: str) -> int:
        return self._counts[reason]

    @property
    def total(self) -> int:
        """Of all reasons."""
        return sum(self.counts.values())

    @property
    def counts(self) -> dict[str, int]:
        """By reason, a copy."""
        with self._lock:
            return dict(self._counts)

    def note(self, reason: str, problem: str) -> None:
        """Somebody was turned away. ``reason``: one word of a short list; ``problem``: for the log, from whom and why."""
        with self._lock:
            self._counts[reason] += 1
            count, now = self._counts[reason], self._clock()
            when, before = self._said.get(reason, (-QUIET_SECONDS + now, 0))
            if now - when < QUIET_SECONDS:
                return
            self._said[reason] = now, count
        more = f" ({count - before} of this kind since the last such line)" if count - before > 1 else ""
        self._logger.warning("%s was refused: %s%s; others like it are only counted", self._what, problem, more)
