"""Leave with the pages, or catch up from the tokens: whichever is foreseen to cost less; and whether to wait for pages."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.memory.lodging import Transfer
from headrace.memory.moves import MoveOptions, Moves
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item

PREEMPTION = ("auto", "swap", "recompute")

_FIRST_RATE = 400e6  # bytes a second, before the tier was measured
_FAILURES = 3  # writes in a row that fail before the tier is left alone
_PATIENCE = 64  # preemptions for which it is left alone then
_WORK_BESIDE = 0.01  # of a step: the bytes also take their share of memory's bandwidth, in all under 3 %
_SELDOMEST = 1 / 8  # of a page a step: something always moves
_SHORT_WAIT = 0.1  # of a step: waiting so long costs less than joining a step later


@dataclass(frozen=True, slots=True)
class SwapOptions:
    """How a scheduler swaps: ``mode`` is one of :data:`PREEMPTION`, ``page_bytes`` are what one page moves."""

    moves: MoveOptions
    page_bytes: int
    mode: str = "auto"


@dataclass(slots=True)
class Rates:
    """Measured bytes a second between pool and tier, and the processor's seconds a byte."""

    write: float = _FIRST_RATE
    read: float = _FIRST_RATE
    work: float = 0.0


@dataclass(slots=True)
class Swapping:
    """The policy over one ledger. ``mode`` is one of :data:`PREEMPTION`; ``page_bytes`` are what one page moves.

    A tier that fails to take pages three times in a row is left alone for the next 64 preemptions.
    """

    moves: Moves
    cost: Cost
    page_bytes: int
    mode: str = "auto"
    rates: Rates = field(default_factory=Rates)
    _failed: int = 0
    _patience: int = 0
    _due: float = 0.0  # of a page, saved up by steps that none moved beside

    def leave(self, item: Item) -> bool:
        """Let an item leave with its pages; False when it had better, or must, compute them anew."""
        if self._patience > 0:
            self._patience -= 1
            return False
        if item.computed == 0 or self.mode == "recompute" or (self.mode == "auto" and not self.is_cheaper(item)):
            return False
        return self.moves.leave(item.item_id, item.pages, item.computed)

    def is_cheaper(self, item: Item) -> bool:
        """True when writing what the tier lacks and reading it all back takes less time than computing it again."""
        pages = self.moves.pool.pages_for(item.computed)
        dirty = self.moves.dirty(item.pages, item.computed)
        moving = self.page_bytes * (dirty / self.rates.write + pages / self.rates.read)
        again = self.cost.predict(item.computed, item.computed * (item.computed + 1) // 2, 0)
        return moving < again

    def note(self, transfer: Transfer, *, well: bool) -> None:
        """A piece has ended."""
        if transfer.writes:
            self._failed = 0 if well else self._failed + 1
            if self._failed >= _FAILURES:
                self._failed, self._patience = 0, _PATIENCE

    def pages_a_step(self, step_seconds: float, *, beside: bool = True) -> int:
        """Most pages to have under way now, so that whoever wants in urgently finds no longer queue than two steps.

        ``beside``: while a step of ``step_seconds`` runs, which must not become longer by more than 3 %. A third of that is the
        mover's work, were it all taken from the thread that is last to end; the rest is left for what a step loses of
        memory's bandwidth, which goes with the same bytes. Where that is less than a page, one moves beside some of the steps
        and none (0) beside the others: a page is much work beside a short step.
        """
        most = 2 * step_seconds * min(self.rates.write, self.rates.read) / self.page_bytes
        if not beside or self.rates.work <= 0:
            return max(1, int(most))
        share = max(_SELDOMEST, min(most, _WORK_BESIDE * step_seconds / self.rates.work / self.page_bytes))
        if share >= 1:
            return int(share)
        self._due += share
        if self._due < 1:
            return 0
        self._due -= 1
        return 1

    def worth_waiting(self, coming: int, newcomers: int, running: int, step_seconds: float) -> bool:
        """FastSwitch's adaptive swap-in: wait for ``coming`` pages of ``newcomers`` items before the next step?

        ``running`` items would take part in it without them. Yes when nothing else could be done, when the wait is short
        beside the step, or when the newcomers are most of the batch and the wait is no longer than a step.
        """
        if newcomers == 0:
            return False
        seconds = coming * self.page_bytes / self.rates.read
        if running == 0 or seconds <= _SHORT_WAIT * step_seconds:
            return True
        return newcomers > running and seconds <= step_seconds
