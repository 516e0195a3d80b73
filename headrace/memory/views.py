"""Contiguous views: each sequence's pages one behind the other in the process's addresses, whatever pages the pool gave it.

Views are read-only: whatever reads through one can harm nobody, and pages are written where the pool has them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from headrace.memory.address_space import map_limit, maps_in_use
from headrace.memory.arena import Arena, can_alias
from headrace.memory.view_ledger import NOWHERE, Showing, ViewLedger, ViewLimits

logger = logging.getLogger("headrace.memory.views")

AHEAD_PAGES = 16  # shown at once behind a sequence's last page
_SPARE_RANGES = 64  # ranges that may rest with what they show while all sequences have one
_MOST_ADDRESSES = 2**44  # bytes of all ranges: an eighth of what a process may have on x86-64
_SHARE_OF_MAPS = 0.75  # of the system's limit: threads and libraries map as well


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """Ranges behind a pool: ``ranges`` of ``range_pages`` rows each; none when pages can't be shown twice."""

    ranges: int
    range_pages: int

    @property
    def rows(self) -> int:
        """Rows of all ranges."""
        return self.ranges * self.range_pages


def plan_views(page_bytes: int, strips: int, longest_pages: int, sequences: int) -> ViewPlan:
    """Ranges for so many sequences of at most ``longest_pages`` pages, as far as addresses go."""
    if not can_alias(page_bytes, strips):
        return ViewPlan(0, longest_pages)
    return ViewPlan(min(sequences + _SPARE_RANGES, _MOST_ADDRESSES // (longest_pages * page_bytes)), longest_pages)


class Views:
    """Places sequences for each step, and shows what the next step needs while this one computes.

    ``arena`` must have been made with ``plan.rows`` aliases. ``ahead``: pages shown beforehand; 0 leaves everything to the step
    that needs it. One thread only. ``inline_seconds``: time that steps waited for mappings, ``beside_seconds``: beside them.
    """

    def __init__(self, arena: Arena, plan: ViewPlan, *, ahead: int = AHEAD_PAGES) -> None:
        ranges = plan.ranges if arena.aliases else 0
        most = max(0, int(_SHARE_OF_MAPS * map_limit()) - maps_in_use() - arena.strips)
        self.ledger = ViewLedger(ViewLimits(arena.pages, ranges, plan.range_pages, arena.strips, most))
        self.inline_seconds = self.beside_seconds = 0.0
        self.failures = 0
        self.plan = plan
        self._arena = arena
        self._ahead = ahead
        self._worker = ThreadPoolExecutor(1, "headrace-views")
        self._under_way: Future[list[int]] | None = None

    def place(self, live: Container[int], sequences: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
        """The first row of each sequence's pages (owner, pages), ``NOWHERE`` (−1) where only its table says where they are.

        Owners that are not ``live`` have gone. Rows stay as they are until the next call.
        """
        began = time.perf_counter()
        self._settle()
        self.ledger.retain(live)
        firsts = []
        for owner, pages in sequences:
            first, orders = self.ledger.place(owner, pages)
            firsts.append(first if self._carry_out(orders) else self._lose(owner))
        self.inline_seconds += time.perf_counter() - began
        return firsts

    def look_ahead(self, owners: Iterable[int]) -> None:
        """Show on another thread what these owners will most likely get next."""
        if not self._ahead:
            return
        orders = []
        for owner in owners:
            order = self.ledger.look_ahead(owner, self._ahead)
            if order is not None:
                orders.append((owner, order))
        if orders:
            self._under_way = self._worker.submit(self._show_beside, orders)

    def forget(self, owner: int) -> None:
        """Clear the range of an owner; it gets another when it is placed again."""
        self._settle()
        self._carry_out(self.ledger.forget(owner))

    def close(self) -> None:
        """Stop the thread, and show nothing any more."""
        self._settle()
        self._worker.shutdown()
        if self._arena.aliases and self.ledger.counters.shown:
            self._carry_out([Showing(self._arena.pages, NOWHERE, self._arena.aliases)])

    def _settle(self) -> None:
        under_way, self._under_way = self._under_way, None
        for owner in under_way.result() if under_way is not None else ():
            self._lose(owner)

    def _show_beside(self, orders: list[tuple[int, Showing]]) -> list[int]:
        """Owners whose orders could not be carried out."""
        began = time.perf_counter()
        lost = [owner for owner, order in orders if not self._carry_out([order])]
        self.beside_seconds += time.perf_counter() - began
        return lost

    def _carry_out(self, orders: list[Showing]) -> bool:
        try:
            for row, page, count in orders:
                if page == NOWHERE:
                    self._arena.unalias(row, count)
                else:
                    self._arena.alias(row, page, count)
        except OSError as error:
            if not self.failures:
                logger.warning("a view can't be mapped, its sequence is read through its table: %s", error)
            self.failures += 1
            return False
        return True

    def _lose(self, owner: int) -> int:
        self._carry_out(self.ledger.lose(owner))
        return NOWHERE
