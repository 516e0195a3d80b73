"""Which waiting item goes next when adapters are dear: one whose adapters run already may pass others, a bounded number of times.

"S-LoRA: Serving Thousands of Concurrent LoRA Adapters" (Sheng et al.) clusters requests by adapter once so many different ones
are in the batch, and trades latency for it. Here Cost decides whether it pays, and nobody is passed more often than the bound.
Pure policy: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from headrace.scheduling.item import Item

WINDOW = 16
"""So many of the first waiting items are looked at."""

DEAR = 0.02
"""Part of a step's time from which on reading one more adapter is dear."""


@dataclass(frozen=True, slots=True)
class Clustering:
    """``most_passed``: how often later items may be admitted before one that came earlier; 0 keeps the order."""

    most_passed: int = 16

    def choose(self, first: Sequence[Item], in_use: Collection[int], is_dear: Callable[[Item], bool]) -> Item:
        """Who is admitted next of the ``first`` waiting items, given in their order: the first of them, or one that may pass it.

        ``in_use``: generations that running items use. ``is_dear``: whether one more item with adapters that nobody uses would
        cost much. Whoever is passed must be told by :meth:`passed` when the choice has been admitted.
        """
        head = first[0]
        if not self.most_passed or _is_free(head, in_use) or not is_dear(head):
            return head
        for item in first:
            if item.passed >= self.most_passed:
                return head  # whoever stands behind this one must not go before it
            if item is not head and _is_free(item, in_use):
                return item
        return head

    @staticmethod
    def passed(first: Sequence[Item], chosen: Item) -> None:
        """``chosen`` was admitted before those that stand in front of it."""
        for item in first:
            if item is chosen:
                return
            item.passed += 1


def _is_free(item: Item, in_use: Collection[int]) -> bool:
    """True when it brings no adapter that is not there already."""
    return all(generation in in_use for generation, _ in item.adapters)
