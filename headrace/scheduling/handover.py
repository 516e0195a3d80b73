"""Items that come from another scheduler or go to one, with the pages of what they computed; no clock and no I/O.

"Llumnix: Dynamic Scheduling for Large Language Model Serving" (Sun et al.) moves requests while they run: pages that are full are
never written again, so that they can be copied beside the steps. Here is only who holds which page meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from headrace.memory.page_pool import PagePool
from headrace.scheduling.item import NEVER, Item, ItemState, Root
from headrace.scheduling.residency import Residency
from headrace.scheduling.roster import Roster

SLACK_PAGES = 2
"""Pages beyond its present need that an item may fill while it is being moved."""


@dataclass(slots=True, eq=False)
class Lease:
    """Pages that a move holds, beside those of items. ``reserved``: promised, and not chosen yet."""

    pages: list[int] = field(default_factory=list)
    reserved: int = 0


class Handover:
    """Lets items of one scheduler go and takes others in, between steps. All pages of moves are in ``leases``."""

    def __init__(self, residency: Residency, roster: Roster, enter: Callable[[Item], None]) -> None:
        self.leases: set[Lease] = set()
        self.moved_in = 0
        self.moved_out = 0
        self._residency = residency
        self._roster = roster
        self._enter = enter

    @property
    def _pool(self) -> PagePool:
        return self._residency.pool

    @property
    def first_waiting(self) -> Item | None:
        """Who is admitted next."""
        return self._roster.waiting.first()

    def is_movable(self, item: Item) -> bool:
        """True when the item could be let go now: it runs or waits, and nothing of it is on its way from or to a disk."""
        residency = self._residency
        if item.state is ItemState.MOVING or item.item_id in self._roster.parked:
            return False
        if residency.swapping is not None and residency.swapping.moves.find(item.item_id) is not None:
            return False
        return residency.keeping is None or not residency.keeping.pages.coming(item.item_id)

    def need(self, items: Sequence[Item]) -> tuple[int, int]:
        """(filled, promised) pages that another scheduler needs to run these items, those of the next few tokens included."""
        filled = len({page for item in items for page in item.pages})
        running = [item for item in items if item.pages]
        ahead = sum(max(0, self.goal_pages(item) - len(item.pages)) for item in running)
        forks = sum(len(item.forks) for item in items)
        return filled + SLACK_PAGES * len(running), ahead + forks

    def goal_pages(self, item: Item) -> int:
        """Pages of the item's tokens and the next one: what it must have before it runs."""
        return self._pool.pages_for(min(len(item.tokens) + 1, item.goal))

    def wants(self, items: Sequence[Item]) -> int:
        """Pages with which these items would run elsewhere, whether they run here or wait."""
        filled = {page for item in items for page in item.pages}
        ahead = sum(max(0, self.goal_pages(item) - len(item.pages)) for item in items)
        return len(filled) + ahead + SLACK_PAGES * len(items)

    def pin(self, pages: Sequence[int]) -> Lease:
        """Hold full pages while they are being copied, whatever becomes of their items."""
        self._pool.share(pages)
        lease = Lease(list(pages))
        self.leases.add(lease)
        return lease

    def find(self, root: Root, tokens: Sequence[int], most: int) -> list[int]:
        """Pages of the longest beginning of ``tokens`` that is known here to this root, at most ``most`` of them."""
        index = self._residency.index
        return index.find(root, tokens, most) if index is not None else []

    def expect(self, pages: int, reserve: int, items: int = 1, known: Sequence[int] = ()) -> Lease | None:
        """Hold room for items that may come; ``None``: there is none without taking it from those that are here.

        ``known``: different pages just found here, which become the first of the lease's ``pages``.
        """
        roster, residency, pool = self._roster, self._residency, self._pool
        fresh = max(0, pages - len(known))
        cached = sum(pool.references(page) == 0 for page in known)
        if roster.running + items > residency.max_running or fresh + cached + reserve > pool.available:
            return None
        pool.share(known)  # first, so that none of them makes room for the others
        taken = pool.allocate(fresh, known[-1] if known else None, reserve)
        assert taken is not None, "there is room"
        reserved = pool.reserve(reserve)
        assert reserved, "there is room"
        lease = Lease([*known, *taken], reserve)
        self.leases.add(lease)
        return lease

    def drop(self, lease: Lease) -> None:
        """Give back what a move holds; doing it again does nothing."""
        if lease in self.leases:
            self.leases.remove(lease)
            self._pool.release(lease.pages)
            self._pool.unreserve(lease.reserved)
            self._residency._refused = None  # pages have come free

    def detach(self, items: Sequence[Item]) -> Lease:
        """Items leave this scheduler, forks included; what they held is the lease's. Each keeps its list of pages, to be sent."""
        pages: list[int] = []
        residency, roster = self._residency, self._roster
        reserved = 0
        for item in items:
            pages += item.pages
            reserved += item.reserved
            item.reserved = 0
            residency.adapters.release(item)
            residency._refused = None  # pages will come free
            roster.drop(item)
            residency.adapters.leave(item)
        lease = Lease(pages, reserved)
        self.leases.add(lease)
        self.moved_out += 1
        return lease

    def attach(self, items: Sequence[Item], lease: Lease | None) -> None:
        """Items run or wait here from now on, as their ``pages`` and ``computed`` say; what the lease held is theirs or free.

        Pages that stand in several items' lists are shared. Forks of an unfinished prompt are among their leader's ``forks``, not
        among ``items``.
        """
        if lease is not None:
            self._take_pages(items, lease)
        for item in items:
            self._enter(item)
            forks, item.forks = item.forks, []
            for fork in forks:
                self._enter(fork)
                fork.state = ItemState.WAITING
                item.forks.append(fork)
            if not (item.pages and self._place(item)):
                self._start_over(item)
        self.moved_in += 1

    def holders(self) -> Iterator[list[int]]:
        """Page lists of moves, for the pool's integrity check."""
        for lease in self.leases:
            yield lease.pages

    @property
    def reserved(self) -> int:
        """Pages promised to moves."""
        return sum(lease.reserved for lease in self.leases)

    def _take_pages(self, items: Sequence[Item], lease: Lease) -> None:
        """One owner for each place in a list of pages, instead of the lease's one for each page."""
        self.leases.remove(lease)
        self._pool.unreserve(lease.reserved)
        for item in items:
            self._pool.share(item.pages)
        self._pool.release(lease.pages)
        self._residency._refused = None  # pages have come free

    def _place(self, item: Item) -> bool:
        """Let an item go on behind its pages; False when what it needs beside them is not there."""
        pool, roster, adapters = self._pool, self._roster, self._residency.adapters
        if item.adapters and adapters.room(item) < 0:
            return False
        wanted = 0 if item.is_decoding else max(0, self.goal_pages(item) - len(item.pages)) + len(item.forks)
        if not pool.reserve(wanted):
            return False
        item.reserved = wanted
        adapters.claim(item, 0)
        at = item.computed // pool.page_tokens
        alone = at >= len(item.pages) or pool.references(item.pages[at]) == 1
        item.writable = len(item.pages) * pool.page_tokens if alone else item.computed
        item.remember_at = pool.page_tokens if self._residency.index is not None else NEVER
        item.state = ItemState.MOVING
        roster.moving[item.item_id] = item
        if not adapters.is_coming(item.item_id):
            roster.arrive(item)
        return True

    def _start_over(self, item: Item) -> None:
        """An item without pages, or without room beside them, waits and computes from its tokens."""
        self._pool.release(item.pages)
        item.lost, item.computed, item.pages = item.computed, 0, []
        self._roster.wait(item)
