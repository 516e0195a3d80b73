"""Read pages that a disk keeps, or compute them: whichever is foreseen to be quicker."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.memory.kept_pages import KeptPages
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item
from headrace.scheduling.swapping import Rates


@dataclass(frozen=True, slots=True)
class KeepOptions:
    """``slots``: pages that the disk keeps; ``page_bytes``: what one page moves; ``run_pages``: most pages in one piece."""

    slots: int
    page_bytes: int
    run_pages: int = 16


GROWN_PAGES = 16
"""A sequence that goes on is written in pieces of so many pages, the longest that moves at once."""


@dataclass(slots=True)
class Keeping:
    """The policy over one ledger of kept pages. ``rates`` are measured by whoever carries."""

    pages: KeptPages
    cost: Cost
    page_bytes: int
    rates: Rates = field(default_factory=Rates)

    def grown(self, item: Item, before: int) -> None:
        """A running item has more known pages than ``before``: what it computed outlives a server that is killed meanwhile."""
        if item.known // GROWN_PAGES > before // GROWN_PAGES and not item.adapters:
            self.pages.grown(item.tenant, item.pages[item.known - 1])

    def slots_for(self, item: Item, known: int, most: int) -> list[int]:
        """Slots to read the item's pages ``known`` … from, in a row; none when computing them is foreseen to be quicker."""
        if item.adapters:  # generations mean nothing after the next start
            return []
        slots = self.pages.find(item.item_id, item.tenant, item.tokens, known, most)
        return slots if slots and self.is_quicker(known, len(slots)) else []

    def is_quicker(self, known: int, count: int) -> bool:
        """True when reading ``count`` pages behind ``known`` others takes less time than computing them."""
        rows = count * self.pages.pool.page_tokens
        pairs = rows * known * self.pages.pool.page_tokens + rows * (rows + 1) // 2
        reading = (self.pages.pages_under_way + count) * self.page_bytes / self.rates.read
        return reading < self.cost.predict(rows, pairs, 0)

    def pages_a_step(self, step_seconds: float) -> int:
        """Most pages to have under way, so that whoever wants in urgently finds no longer queue than two steps."""
        return int(2 * step_seconds * min(self.rates.write, self.rates.read) / self.page_bytes)
