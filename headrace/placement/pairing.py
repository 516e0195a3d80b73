"""Which instances exchange requests: the fullest gives to the freest, with hysteresis. Pure; a round is a call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from headrace.placement.load import Load, freeness


@dataclass(frozen=True, slots=True)
class PairingRule:
    """Bounds on freeness, in pages a running request.

    An instance below ``gives`` is a source until it is above ``stops``; one above ``takes`` is a destination. ``gives`` < ``stops``
    < ``takes``, so that no move makes its destination a source. ``headroom`` as in :mod:`headrace.placement.load`.
    """

    gives: float = 3.0
    stops: float = 6.0
    takes: float = 8.0
    headroom: float = 0.25


@dataclass(frozen=True, slots=True)
class Pair:
    """``source`` is to give a request of at most ``room`` pages to ``target``."""

    source: int
    target: int
    room: int


class Pairing:
    """Remembers between rounds which instances are sources."""

    def __init__(self, rule: PairingRule | None = None) -> None:
        self.rule = rule or PairingRule()
        self.sources: set[int] = set()

    def round(self, loads: Mapping[int, Load]) -> list[Pair]:
        """Pairs for now: lowest freeness with highest, each instance in one pair. O(n log n)."""
        free = {number: freeness(load, self.rule.headroom) for number, load in loads.items()}
        self._update(loads, free)
        sources = sorted(self.sources, key=lambda number: (free[number], number))
        targets = sorted(
            (number for number, load in loads.items() if number not in self.sources and self._takes(load, free[number])),
            key=lambda number: (-free[number], number),
        )
        pairs = []
        for source, target in zip(sources, targets, strict=False):
            room = self._room(loads[source], loads[target])
            if room > 0:
                pairs.append(Pair(source, target, room))
        return pairs

    def _update(self, loads: Mapping[int, Load], free: Mapping[int, float]) -> None:
        self.sources &= loads.keys()
        for number, load in loads.items():
            if free[number] < self.rule.gives and (load.running or load.waiting):
                self.sources.add(number)
            elif free[number] > self.rule.stops or not (load.running or load.waiting):
                self.sources.discard(number)

    def _takes(self, load: Load, free: float) -> bool:
        return free > self.rule.takes and load.waiting == 0 and not load.leaving

    def _room(self, source: Load, target: Load) -> int:
        """The largest request that leaves the target freer than its bound, or for a source that is emptied, any that fits."""
        spare = target.pages - target.held
        if source.leaving:
            return spare
        after = replace(target, running=target.running + 1)
        left = freeness(after, self.rule.headroom) - self.rule.gives
        return min(spare, math.floor(left * max(1, after.running)))
