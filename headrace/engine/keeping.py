"""The engine's side of pages that a disk keeps: reads before steps, writes behind them, and no step waits for either."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from headrace.engine.wire import KeptGauges
from headrace.memory.kept_file import KeptFile
from headrace.memory.kept_pages import KeptPiece
from headrace.memory.mover import Mover
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.step import Step

logger = logging.getLogger("headrace.engine.keeping")

_LONGEST_WAIT = 0.02  # seconds before the engine looks at its messages again
_UNTIL_NEWS = 0.005


class DiskKeeping:
    """Carries the pieces of a scheduler's kept pages on a thread of their own, to and from one file."""

    def __init__(self, scheduler: Scheduler, file: KeptFile) -> None:
        assert scheduler.keeping is not None, "kept pages need a scheduler that keeps"
        self._scheduler = scheduler
        self._keeping = scheduler.keeping
        self._pages = scheduler.keeping.pages
        self._file = file
        self._mover: Mover[KeptPiece] = Mover(file)
        self._step_seconds = _UNTIL_NEWS
        self._warned: set[bool] = set()
        self._pages.restore(file.entries())

    @property
    def carrying(self) -> bool:
        """True when a sequence's pages are being read or written."""
        return self._pages.carrying

    @property
    def behind(self) -> bool:
        """True when something is to be written that could be written now, or is being carried."""
        return self._pages.busy

    def plan(self, plan: Callable[[], Step | None], *, swaps: bool) -> Step | None:
        """The next step as ``plan`` has it, waiting at most 20 ms for pages when there is none.

        ``swaps``: pages of running requests are on their way between pool and disk, which go before anything written here.
        """
        self._collect()
        step = plan()
        ends = time.perf_counter() + _LONGEST_WAIT
        while step is None and self._scheduler.live and self._pages.carrying and time.perf_counter() < ends:
            self._wait(writes=not swaps)
            step = plan()
        if step is not None:
            self._step_seconds = step.predicted
        self._issue(writes=not swaps)
        return step

    def settle(self, seconds: float) -> None:
        """Write what is to be written, for at most so long."""
        ends = time.perf_counter() + seconds
        while self._pages.busy and time.perf_counter() < ends:
            self._wait(writes=True)

    def gauges(self) -> KeptGauges:
        """The state of kept pages now."""
        counters = self._pages.counters
        return KeptGauges(
            stored_pages=self._pages.stored, total_pages=self._pages.slots.total, written_pages=counters.written,
            read_pages=counters.read, hits=counters.came, failures=counters.failures, page_bytes=self._keeping.page_bytes,
        )  # fmt: skip

    def close(self, seconds: float = 0.0) -> None:
        """Write for at most ``seconds`` what is still to be written, then stop."""
        self.settle(seconds)
        self._mover.close()

    def _wait(self, *, writes: bool) -> None:
        self._issue(writes=writes)
        self._mover.wait(_UNTIL_NEWS)
        self._collect()

    def _issue(self, *, writes: bool) -> None:
        pieces = self._pages.issue(self._keeping.pages_a_step(self._step_seconds), writes=writes)
        if pieces:
            self._file.describe(pieces)
            self._mover.start(pieces)

    def _collect(self) -> None:
        ended = self._mover.finished()
        if not ended:
            return
        self._keeping.rates.write, self._keeping.rates.read = self._mover.write_rate, self._mover.read_rate
        for one in ended:
            if one.error is not None and one.transfer.writes not in self._warned:
                self._warned.add(one.transfer.writes)
                what = "kept on disk, which is left alone for a while" if one.transfer.writes else "read and are computed again"
                logger.warning("%d pages can't be %s (told once): %s", one.transfer.count, what, one.error)
            self._pages.done(one.transfer, carried=one.error is None)
        self._scheduler.kept_arrived()
