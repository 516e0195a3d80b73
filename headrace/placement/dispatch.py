"""Which instance a new request goes to. Pure: numbers in, an instance out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.placement.load import Load, freeness


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A request that wants a place.

    ``pages``: what its prompt needs. ``known``: by instance, pages of its beginning that are probably there.
    ``at_home``: instances that probably have its adapters in memory. ``urgent``: its priority is high.
    """

    pages: int
    known: Mapping[int, int] = field(default_factory=dict)
    at_home: frozenset[int] = frozenset()
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class DispatchRule:
    """How much load is accepted for what is there already.

    ``headroom``: part of an instance that urgent requests keep free. ``loyal``: an instance with a known beginning or adapter is
    taken while it has at least this part of the freest one's freeness.
    """

    headroom: float = 0.25
    loyal: float = 0.5


def choose_instance(loads: Mapping[int, Load], newcomer: Newcomer, rule: DispatchRule | None = None) -> int | None:
    """The freest instance after it has taken the request, or a nearly as free one that knows its beginning or adapters.

    ``None`` when every instance is being emptied, or there is none. Equal ones are taken in order of their numbers.
    """
    rule = rule or DispatchRule()
    after = {number: _freeness_after(load, newcomer, number, rule) for number, load in loads.items() if not load.leaving}
    if not after:
        return None
    best = max(after.values())
    floor = rule.loyal * best if best > 0 else best
    near = {number: free for number, free in after.items() if free >= floor}
    known = max((newcomer.known.get(number, 0) for number in near), default=0)
    if known > 0:
        near = {number: free for number, free in near.items() if newcomer.known.get(number, 0) == known}
    elif any(number in newcomer.at_home for number in near):
        near = {number: free for number, free in near.items() if number in newcomer.at_home}
    return max(near, key=lambda number: (near[number], -number))


def _freeness_after(load: Load, newcomer: Newcomer, number: int, rule: DispatchRule) -> float:
    needed = max(0, newcomer.pages - newcomer.known.get(number, 0))
    held, running, urgent = load.held + needed, load.running + 1, load.urgent + newcomer.urgent
    taken = Load(load.pages, held, running, load.waiting, load.head, load.queue, urgent)  # one for each instance: replace() is slow
    free = freeness(taken, rule.headroom, whole_queue=True)
    return free if not math.isnan(free) else -math.inf
