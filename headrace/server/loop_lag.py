"""A probe that measures how late the event loop is: the number that says whether one client can hurt the others."""

from __future__ import annotations

import asyncio
from collections import deque


class LoopLag:
    """Sleeps a little, again and again, and remembers by how much each wake-up was late."""

    def __init__(self, period: float = 0.02, window: float = 10.0) -> None:
        self._period = period
        self._recent: deque[float] = deque(maxlen=max(1, int(window / period)))

    def worst(self) -> float:
        """Worst lateness in seconds within the window."""
        return max(self._recent, default=0.0)

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._period
            await asyncio.sleep(self._period)
            self._recent.append(max(0.0, loop.time() - due))
