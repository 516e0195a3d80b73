"""How many pages of its pool an engine may use, where several models share one budget of memory."""

from __future__ import annotations

from headrace.engine.lending_wire import Lending
from headrace.memory.arena import Arena
from headrace.scheduling.scheduler import Scheduler

PATIENT_STEPS = 64
"""Steps for which pages that are due may stay with running requests; then the newest of these gives way."""


class Allowance:
    """Follows what the server allows, between steps. Memory of pages out of use goes back to the system.

    The pool is mapped as large as it may ever be, which costs addresses only. Less being allowed, pages that nobody holds go at
    once, cached ones after blank ones, and those of requests as these end. When some are due for :data:`PATIENT_STEPS` steps, the
    newest stream is preempted, one a step: who lent pages waits no longer than that for them.
    """

    def __init__(self, scheduler: Scheduler, arena: Arena, lending: Lending, own: int) -> None:
        self._scheduler = scheduler
        self._arena = arena
        self._due_since = 0
        self.allowed = pages_of(lending.first, arena)
        scheduler.pool.lasting = own
        self.follow()

    def allow(self, size: int) -> None:
        """So many bytes from now on."""
        self.allowed = max(1, min(self._scheduler.pool.total, pages_of(size, self._arena)))
        self._due_since = self._scheduler.counters.steps

    def follow(self) -> bool:
        """Between two steps: take pages out of use or into it, as far as it can be done now. True when something changed."""
        pool = self._scheduler.pool
        excess = pool.usable - self.allowed
        if excess == 0:
            return False
        if excess < 0:
            pool.give_back(-excess)
            self._arena.most_ahead = max(self._arena.most_ahead, self.allowed)
            return True
        runs = pool.withhold(excess)
        for start, length in runs:
            self._arena.give_up(start, length)
        self._arena.most_ahead = self.allowed
        if pool.usable > self.allowed and self._scheduler.counters.steps - self._due_since > PATIENT_STEPS:
            self._press()
        return bool(runs)

    def _press(self) -> None:
        """Let the newest stream give its pages back, unless that would leave nobody to run."""
        streams = self._scheduler.decodes
        if len(streams) > 1:
            self._scheduler.preempt(streams[-1])


def pages_of(size: int, arena: Arena) -> int:
    """Whole pages in so many bytes."""
    return size // arena.page_bytes
