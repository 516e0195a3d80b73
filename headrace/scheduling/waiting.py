"""The items that wait, in the order in which they are served: shares by what they were served, items of one by their order."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace, nsmallest
from operator import attrgetter

from headrace.scheduling.item import Item
from headrace.scheduling.shares import Account, Shares

PAGE_QUANTA = 4
"""Quanta that must lie between two shares before one takes pages from the other, which costs what it had computed."""

_SPARE = 16  # entries of items that have left, which a heap may always keep

_ORDER = attrgetter("order")

Key = tuple[int, tuple[int, int]]


class _Queue:
    """The waiting items of one account as a heap; entries of items that have left go when they come to its top."""

    __slots__ = ("account", "entries", "size", "turn")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.entries: list[tuple[tuple[int, int], int, Item]] = []
        self.size = 0
        self.turn = 0  # of its newest entry among the heads


class Waiting:
    """Who is admitted next: the share with the smallest rank, and of it the item with the smallest order.

    Adding, removing and finding the first take O(log n) amortised. Counters only grow, so that a head's place is looked at again
    when it comes to the top, and never when somebody pays.
    """

    __slots__ = ("_entered", "_heads", "_items", "_queues", "_serial", "_shares")

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._items: dict[int, Item] = {}
        self._entered: dict[int, int] = {}
        self._queues: dict[Account, _Queue] = {}
        self._heads: list[tuple[int, tuple[int, int], int, _Queue]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: Item) -> bool:
        return self._items.get(item.item_id) is item

    def __iter__(self) -> Iterator[Item]:
        """All of them, in no order that matters."""
        return iter(self._items.values())

    def in_order(self) -> list[Item]:
        """All of them, who is served next at first, as long as nobody pays; takes O(n log n)."""
        return sorted(self._items.values(), key=_place)

    def __reversed__(self) -> Iterator[Item]:
        """All of them, who would be served last at first; takes O(n log n)."""
        return reversed(self.in_order())

    def first(self) -> Item | None:
        """Who is served next."""
        heads = self._heads
        while heads:
            rank, order, turn, queue = heads[0]
            item = self._head(queue) if queue.turn == turn else None
            if item is None:
                heappop(heads)
                continue
            key = queue.account.rank(item.priority), item.order
            if key == (rank, order):
                return item
            heapreplace(heads, (*key, self._next_turn(queue), queue))
        return None

    def nearest(self, count: int) -> list[Item]:
        """The first so many of those that stand equal to the first but for their order; takes O(n)."""
        first = self.first()
        if first is None:
            return []
        rank = first.account.rank(first.priority)
        equal = [item for item in self._items.values() if item.account.rank(item.priority) == rank]
        return nsmallest(count, equal, key=_ORDER)

    def add(self, item: Item) -> None:
        """Queue an item; it must not be queued already."""
        account = item.account
        queue = self._queues.get(account)
        if queue is None:
            self._shares.begin_to_wait(account)
            queue = self._queues[account] = _Queue(account)
        self._serial += 1
        self._items[item.item_id] = item
        self._entered[item.item_id] = self._serial
        heappush(queue.entries, (item.order, self._serial, item))
        queue.size += 1
        if self._head(queue) is item:
            self._show(queue)
        if len(queue.entries) > 2 * queue.size + _SPARE:
            queue.entries = [entry for entry in queue.entries if self._is_in(entry)]
            heapify(queue.entries)

    def remove(self, item: Item) -> bool:
        """Take an item out, wherever it stands; False when it does not wait."""
        if self._items.get(item.item_id) is not item:
            return False
        queue = self._queues[item.account]
        was_head = self._head(queue) is item
        del self._items[item.item_id], self._entered[item.item_id]
        queue.size -= 1
        if queue.size == 0:
            queue.turn = 0
            del self._queues[item.account]
            self._shares.end_to_wait(item.account)
        elif was_head:
            self._show(queue)  # the next one may be of higher priority, which brings the share forward
        return True

    def _is_in(self, entry: tuple[tuple[int, int], int, Item]) -> bool:
        return self._entered.get(entry[2].item_id) == entry[1]

    def _head(self, queue: _Queue) -> Item | None:
        entries = queue.entries
        while entries and not self._is_in(entries[0]):
            heappop(entries)
        return entries[0][2] if entries else None

    def _show(self, queue: _Queue) -> None:
        """The queue has a new head."""
        head = self._head(queue)
        assert head is not None, "somebody waits"
        heappush(self._heads, (queue.account.rank(head.priority), head.order, self._next_turn(queue), queue))
        if len(self._heads) > 2 * len(self._queues) + _SPARE:
            self._heads = [head for head in self._heads if head[3].turn == head[2]]
            heapify(self._heads)

    def _next_turn(self, queue: _Queue) -> int:
        self._serial += 1
        queue.turn = self._serial
        return self._serial


def _place(item: Item) -> Key:
    return item.account.rank(item.priority), item.order


def claim_on_pages(item: Item) -> Key:
    """Where an item stands when pages run out: the largest gives its own back.

    Shares that differ by a few quanta count as equal here: among them the last to arrive loses least.
    """
    return item.account.rank(item.priority) // PAGE_QUANTA, item.order


def is_well_behind(item: Item, other: Item, quanta: int = 1) -> bool:
    """True when an item's share was served so much less than another's that it may take the other's place.

    More than so many quanta: less never changes anything, so that equal shares don't push each other out by turns. Never within
    one share.
    """
    return item.account is not other.account and item.account.rank(item.priority) + quanta < other.account.rank(other.priority)
