"""A probe that measures how late the event loop is: the number that says whether one client can hurt the others."""

from __future__ import annotations

import asyncio
import time
from collections import deque


class LoopLag:
    """Sleeps a little, again and again, and remembers by how much each wake-up was late, and how much of that was our doing.

    On a busy machine a wake-up is also late because others had the processor. Linux says how long this thread could have
    run and was not let; the rest of the lateness is our own work, on this thread or on one that held the interpreter.
    Where the system does not say, all of it counts as ours.
    """

    def __init__(self, period: float = 0.02, window: float = 10.0) -> None:
        self._period = period
        self._late: deque[float] = deque(maxlen=max(1, int(window / period)))
        self._blocked: deque[float] = deque(maxlen=max(1, int(window / period)))

    def worst(self) -> float:
        """Worst lateness in seconds within the window."""
        return max(self._late, default=0.0)

    def worst_blocked(self) -> float:
        """Worst lateness in seconds within the window that is our own doing."""
        return max(self._blocked, default=0.0)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due, queued = time.perf_counter() + self._period, _queued_seconds()
            await asyncio.sleep(self._period)
            late = max(0.0, time.perf_counter() - due)
            self._late.append(late)
            self._blocked.append(max(0.0, late - (_queued_seconds() - queued)))


def _queued_seconds() -> float:
    """Seconds that this thread has waited for a processor since it began; 0 where the system does not count them."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return 0.0
