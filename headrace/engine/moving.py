"""Moves at the border of steps: what has ended is told to the scheduler, what it wants is handed to the mover."""

from __future__ import annotations

import logging
import time

from headrace.engine.wire import MoveGauges
from headrace.memory.lodging import Transfer
from headrace.memory.mover import Mover
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.step import Step

logger = logging.getLogger("headrace.engine.moving")

_LONGEST_WAIT = 0.02  # seconds before the engine looks at its messages again
_UNTIL_NEWS = 0.005


class Moving:
    """The engine's side of moves. ``wait_seconds``: time in which nothing but waiting for pages could be done, or paid off.

    ``synchronous``: every step waits for all moves, as engines do that copy in line; only for comparison.
    """

    def __init__(self, scheduler: Scheduler, mover: Mover[Transfer], *, synchronous: bool = False) -> None:
        assert scheduler.swapping is not None, "a mover needs a scheduler that swaps"
        self.mover = mover
        self.wait_seconds = 0.0
        self.failures = 0
        self._scheduler = scheduler
        self._swapping = scheduler.swapping
        self._moves = scheduler.swapping.moves
        self._synchronous = synchronous
        self._step_seconds = _UNTIL_NEWS

    @property
    def busy(self) -> bool:
        """True when pages are on their way, so that a step may become possible without anything new."""
        return self._moves.busy

    def plan(self) -> Step | None:
        """The scheduler's next step, after waiting for pages where that is the better choice. At most 20 ms without a step."""
        self._collect()
        if self._moves.busy:
            self._await_newcomers()
        step = self._scheduler.plan()
        if step is not None:
            self._step_seconds = step.predicted
        if self._moves.busy:
            ends = time.perf_counter() + _LONGEST_WAIT
            while step is None and self._moves.busy and time.perf_counter() < ends:
                self._wait()
                step = self._scheduler.plan()
            self._issue(beside=step is not None)
            while self._synchronous and self._moves.busy:
                self._wait()
        return step

    def settle(self) -> None:
        """Wait until nothing is under way any more."""
        while self._moves.busy:
            self._wait()

    def gauges(self) -> MoveGauges:
        """The state of moves now."""
        counters = self._moves.counters
        return MoveGauges(
            under_way=self._moves.under_way, stored_pages=self._moves.stored_pages,
            written_pages=counters.written, writes=counters.writes, read_pages=counters.read, reads=counters.reads,
            reused_pages=counters.reused, rescues=counters.rescues, failures=self.failures, wait_seconds=self.wait_seconds,
            page_bytes=self._swapping.page_bytes,
        )  # fmt: skip

    def close(self) -> None:
        """Stop carrying."""
        self.mover.close()

    def _collect(self) -> None:
        ended = self.mover.finished()
        if not ended:
            return
        rates = self._swapping.rates
        rates.write, rates.read, rates.work = self.mover.write_rate, self.mover.read_rate, self.mover.work_rate
        for one in ended:
            if one.error is not None:
                self.failures += 1
                verb = "written" if one.transfer.writes else "read"
                logger.warning(
                    "%d pages could not be %s, their request computes them again: %s", one.transfer.count, verb, one.error
                )
            self._scheduler.carried(one.transfer, well=one.error is None)

    def _issue(self, *, beside: bool) -> None:
        pages = self._swapping.pages_a_step(self._step_seconds, beside=beside and not self._synchronous)
        if pages:
            self.mover.start(self._moves.issue(pages))

    def _await_newcomers(self) -> None:
        """FastSwitch's adaptive swap-in: wait for pages that are nearly there, else run on."""
        ends = time.perf_counter() + _LONGEST_WAIT
        while self._scheduler.waits_for_newcomers(self._step_seconds) and time.perf_counter() < ends:
            self._wait()

    def _wait(self) -> None:
        began = time.perf_counter()
        self._issue(beside=False)
        self.mover.wait(_UNTIL_NEWS)
        self._collect()
        self.wait_seconds += time.perf_counter() - began
