"""Who stands where: the live items of a scheduler, those that run in lists in order of arrival and priority."""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import chain
from operator import attrgetter

from headrace.scheduling.clustering import Clustering
from headrace.scheduling.item import Item, ItemState
from headrace.scheduling.shares import Shares
from headrace.scheduling.waiting import Waiting, claim_on_pages

_ORDER = attrgetter("order")
_IN_ORDER = Clustering()


class Roster:
    """Live items. Each is in exactly one place.

    ``waiting`` hold no pages. ``moving`` are admitted and wait for their pages to come back from a lower tier.
    ``prompts`` and ``decodes`` run: a decode misses exactly its newest token, everything else
    that runs is a prompt (also an item that catches up after a preemption). ``parked`` items have nothing left to compute
    and wait for the engine to finish them. ``forks`` wait inside their leader's ``forks`` and are only in ``items``.
    """

    __slots__ = ("clustering", "decodes", "items", "moving", "parked", "prompts", "shares", "waiting")

    def __init__(self, shares: Shares | None = None, clustering: Clustering = _IN_ORDER) -> None:
        self.clustering = clustering
        self.shares = shares if shares is not None else Shares()
        self.items: dict[int, Item] = {}
        self.waiting = Waiting(self.shares)
        self.prompts: list[Item] = []
        self.decodes: list[Item] = []
        self.parked: dict[int, Item] = {}
        self.moving: dict[int, Item] = {}

    @property
    def running(self) -> int:
        """Items that take part in steps now, or as soon as their pages have come back."""
        return len(self.prompts) + len(self.decodes) + len(self.moving)

    def last_running(self) -> Item | None:
        """The one to preempt: of the share that was served most, the running item that arrived last."""
        if self.shares.several:
            return max(chain(self.prompts, self.decodes), key=claim_on_pages, default=None)
        prompt = self.prompts[-1] if self.prompts else None
        decode = self.decodes[-1] if self.decodes else None
        return decode if prompt is None or (decode is not None and decode.order > prompt.order) else prompt

    def prompts_in_turn(self) -> list[Item]:
        """Running prompts as steps take them: by share, then by order."""
        if not self.shares.several:
            return self.prompts
        return sorted(self.prompts, key=lambda item: (item.account.rank(), item.order))

    def is_queued(self, item: Item) -> bool:
        """True when the item itself waits for admission (a fork waits for its leader instead)."""
        return item in self.waiting

    def wait(self, item: Item) -> None:
        """Queue an item."""
        item.state = ItemState.WAITING
        self.waiting.add(item)

    def admit(self, item: Item, state: ItemState = ItemState.RUNNING) -> None:
        """A waiting item runs from now on, or is MOVING until its pages have come back."""
        self.waiting.remove(item)
        item.state = state
        if state is ItemState.MOVING:
            self.moving[item.item_id] = item
        else:
            _insert(self.decodes if item.is_decoding else self.prompts, item)

    def arrive(self, item: Item) -> None:
        """The pages of a moving item have come back."""
        del self.moving[item.item_id]
        item.state = ItemState.RUNNING
        _insert(self.decodes if item.is_decoding else self.prompts, item)

    def run_decode(self, item: Item) -> None:
        """A fork starts to run with its prompt computed."""
        item.state = ItemState.RUNNING
        _insert(self.decodes, item)

    def caught_up(self) -> None:
        """Move prompts that miss only their newest token to the decodes."""
        if any(item.is_decoding for item in self.prompts):
            for item in self.prompts:
                if item.is_decoding:
                    _insert(self.decodes, item)
            self.prompts = [item for item in self.prompts if not item.is_decoding]

    def park(self, item: Item) -> None:
        """Nothing is left to compute for a running item."""
        self._leave(item)
        self.parked[item.item_id] = item

    def preempted(self, item: Item) -> None:
        """A running item goes back to its place in the queue."""
        self._leave(item)
        self.wait(item)

    def reorder(self, item: Item, order: tuple[int, int]) -> None:
        """Give an item another place in the list in which it stands."""
        for queue in (self.prompts, self.decodes):
            if _remove(queue, item):
                item.order = order
                _insert(queue, item)
                return
        waits = self.waiting.remove(item)
        item.order = order
        if waits:
            self.waiting.add(item)

    def drop(self, item: Item) -> None:
        """The item is no longer live."""
        self._leave(item)
        del self.items[item.item_id]
        item.state = ItemState.FINISHED
        self.shares.leave(item.account)

    def replace(self, item: Item, heir: Item) -> None:
        """``heir`` (a waiting fork) takes the place of ``item``, which is no longer live."""
        heir.state = item.state
        self.drop(item)
        if heir.state is ItemState.MOVING:
            self.moving[heir.item_id] = heir
        elif heir.state is ItemState.WAITING:
            self.waiting.add(heir)
        else:
            _insert(self.decodes if heir.is_decoding else self.prompts, heir)

    def _leave(self, item: Item) -> None:
        if self.parked.pop(item.item_id, None) is None and self.moving.pop(item.item_id, None) is None:
            _ = _remove(self.decodes, item) or _remove(self.prompts, item) or self.waiting.remove(item)


def _insert(items: list[Item], item: Item) -> None:
    if items and items[-1].order > item.order:
        insort(items, item, key=_ORDER)
    else:
        items.append(item)


def _remove(items: list[Item], item: Item) -> bool:
    index = bisect_left(items, item.order, key=_ORDER)
    if index < len(items) and items[index] is item:
        del items[index]
        return True
    return False
