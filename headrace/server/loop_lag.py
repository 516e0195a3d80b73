"""A probe that measures how late the event loop is: the number that says whether one client can hurt the others."""

from __future__ import annotations

import asyncio
import time
from collections import deque


class LoopLag:
    """Sleeps a little, again and again, and remembers by how much each wake-up was late, and how much of that was our doing.

    On a busy machine a wake-up is also late because others had the processor. What this process computed meanwhile, on
    all its threads, bounds from above by how much it held itself up.
    """

    def __init__(self, period: float = 0.02, window: float = 10.0) -> None:
        self._period = period
        self._late: deque[float] = deque(maxlen=max(1, int(window / period)))
        self._blocked: deque[float] = deque(maxlen=max(1, int(window / period)))

    def worst(self) -> float:
        """Worst lateness in seconds within the window."""
        return max(self._late, default=0.0)

    def worst_blocked(self) -> float:
        """Worst lateness in seconds that this process's own computing explains."""
        return max(self._blocked, default=0.0)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due, computed = time.perf_counter() + self._period, time.process_time()
            await asyncio.sleep(self._period)
            late = max(0.0, time.perf_counter() - due)
            self._late.append(late)
            self._blocked.append(min(late, time.process_time() - computed))
