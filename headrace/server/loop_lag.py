"""A probe that measures how late the event loop is: the number that says whether one client can hurt the others."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from types import TracebackType


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
        with _Queued() as queued:
            before = queued.seconds()
            while True:
                due = time.perf_counter() + self._period
                await asyncio.sleep(self._period)
                late, after = max(0.0, time.perf_counter() - due), queued.seconds()
                self._late.append(late)
                self._blocked.append(max(0.0, late - (after - before)))
                before = after


class _Queued:
    """Reads how long this thread has waited for a processor. The file stays open: opening it costs ten times the reading."""

    def __enter__(self) -> _Queued:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file >= 0:
            os.close(self._file)

    def seconds(self) -> float:
        """Since the thread began; 0 where the system does not count it."""
        try:
            return int(os.pread(self._file, 128, 0).split()[1]) * 1e-9
        except (OSError, IndexError, ValueError):
            return 0.0
