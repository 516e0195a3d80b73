"""Which waiting item goes next where adapters are dear: one whose adapters run already may pass others, a bounded number of times.

"S-LoRA: Serving Thousands of Concurrent LoRA Adapters" (Sheng et al.) clusters requests by adapter once so many different ones
are in the batch, and trades latency for it. Here Cost decides whether it pays, and nobody is passed more often than the bound.
Pure policy: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.scheduling.item import Item

WINDOW = 16
"""So many of the first waiting items are looked at."""

DEAR = 0.02
"""Part of a step's time from which on reading one more item's adapters is dear."""

RUNS, RESIDENT, ABSENT = range(3)
"""Where an item's adapters are: running items read them anyway, they are in memory, some have to be loaded."""


@dataclass(frozen=True, slots=True)
class Clustering:
    """``most_passed``: how often later items may be admitted before one that came earlier; 0 keeps the order."""

    most_passed: int = 0

    def choose(self, near: Sequence[Item], place: Callable[[Item], int]) -> Item:
        """Who is admitted next of ``near``: the first waiting items in their order, of which the first brings dear adapters.

        ``place``: :data:`RUNS`, :data:`RESIDENT` or :data:`ABSENT`. The nearest of those that stand best, as long as nobody in
        front of it has been passed ``most_passed`` times.
        """
        best, least = near[0], place(near[0])
        for item in near:
            if least == RUNS:
                break
            if (own := place(item)) < least:
                best, least = item, own
            if item.passed >= self.most_passed:
                break
        return best

    @staticmethod
    def note(near: Sequence[Item], chosen: Item) -> None:
        """``chosen`` was admitted before those that stand in front of it."""
        for item in near:
            if item is chosen:
                return
            item.passed += 1
