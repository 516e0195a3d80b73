"""Carries pages between the pool and the tier below it on a thread of its own, so that no step waits for a disk."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

logger = logging.getLogger("headrace.memory.mover")

_RATE_WEIGHT = 0.2
_FIRST_RATE = 400e6  # bytes a second until the tier was measured
_FIRST_WORK = 0.25e-9  # processor seconds a byte until then


class Tier(Protocol):
    """Where pages lie that are not in the pool. Calls come from one thread and release the interpreter lock."""

    slot_bytes: int

    def write(self, page: int, slot: int, count: int) -> None:
        """Copy adjacent pages to adjacent slots. Raises OSError."""

    def read(self, page: int, slot: int, count: int) -> None:
        """Copy adjacent slots to adjacent pages. Raises OSError."""

    def close(self) -> None:
        """Give the space back."""


class Piece(Protocol):
    """Adjacent pages and slots, as :class:`headrace.memory.lodging.Transfer` has them."""

    page: int
    slot: int
    count: int
    writes: bool


AnyPiece = TypeVar("AnyPiece", bound=Piece)


@dataclass(frozen=True, slots=True)
class Carried(Generic[AnyPiece]):
    """A piece that was carried, or was not (``error``). ``work``: seconds of a processor that it took."""

    transfer: AnyPiece
    seconds: float
    work: float
    error: OSError | None


class Mover(Generic[AnyPiece]):
    """One thread that carries pieces in the order in which they are given.

    ``write_rate`` and ``read_rate``: bytes a second as measured; ``work_rate``: processor seconds a byte; ``seconds``: time spent
    carrying. The thread starts with the first piece.
    """

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.write_rate = self.read_rate = _FIRST_RATE
        self.work_rate = _FIRST_WORK
        self.seconds = 0.0
        self._asked: SimpleQueue[AnyPiece | None] = SimpleQueue()
        self._carried: deque[Carried[AnyPiece]] = deque()
        self._news = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, transfers: list[AnyPiece]) -> None:
        """Carry these after all others."""
        if transfers and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="headrace-mover", daemon=True)
            self._thread.start()
        for transfer in transfers:
            self._asked.put(transfer)

    def finished(self) -> list[Carried[AnyPiece]]:
        """Pieces that have ended since the last call; each is told once."""
        self._news.clear()
        ended = [self._carried.popleft() for _ in range(len(self._carried))]
        for one in ended:
            self.seconds += one.seconds
            if one.error is None and one.seconds > 0:
                self._learn(one)
        return ended

    def wait(self, seconds: float) -> None:
        """Sleep until a piece has ended, at most so long."""
        self._news.wait(seconds)

    def close(self) -> None:
        """End after the piece that is being carried, and close the tier."""
        if self._thread is not None:
            with contextlib.suppress(Empty):
                while True:
                    self._asked.get_nowait()
            self._asked.put(None)
            self._thread.join()
            self._thread = None
        self.tier.close()

    def _run(self) -> None:
        while (transfer := self._asked.get()) is not None:
            began, worked = time.perf_counter(), time.thread_time()
            error: OSError | None = None
            try:
                carry = self.tier.write if transfer.writes else self.tier.read
                carry(transfer.page, transfer.slot, transfer.count)
            except OSError as failed:
                error = failed
            except Exception as failed:  # whatever fails here costs one sequence its pages, never the engine
                logger.exception("the mover has failed")
                error = OSError(f"the mover has failed: {failed}")
            self._carried.append(Carried(transfer, time.perf_counter() - began, time.thread_time() - worked, error))
            self._news.set()

    def _learn(self, one: Carried[AnyPiece]) -> None:
        moved = one.transfer.count * self.tier.slot_bytes
        rate = moved / one.seconds
        self.work_rate += _RATE_WEIGHT * (one.work / moved - self.work_rate)
        if one.transfer.writes:
            self.write_rate += _RATE_WEIGHT * (rate - self.write_rate)
        else:
            self.read_rate += _RATE_WEIGHT * (rate - self.read_rate)
