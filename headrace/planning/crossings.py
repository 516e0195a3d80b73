"""Requests that change their simulated instance while they run: the words of a move, and the real accounts of pages.

Every word between two engines is heard between two steps, as in reality, so a move takes as long as the steps that it waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.scheduling.handover import Lease
from headrace.scheduling.item import Item
from headrace.scheduling.leaving import who_leaves

if TYPE_CHECKING:
    from headrace.planning.instance import Progress, SimulatedInstance

WORD_SECONDS = 4e-4
"""From one engine by way of the owner to the other."""
LAST_PAGES = 4
"""So many pages are sent while the request stands still; the others beside the steps."""
AT_ONCE = 2
"""Requests that leave one engine at the same time."""


class Around(Protocol):
    """The cluster, as moves need it."""

    instances: list[SimulatedInstance]

    def at_border(self, index: int, now: float, action: Callable[[float], None]) -> None:
        """Do this between two steps of an instance."""

    def later(self, time: float, action: Callable[[float], None]) -> None:
        """Do this at that time."""


@dataclass(slots=True, eq=False)
class Crossing:
    """A request under way from one instance to another. ``item`` ``None``: the source has not chosen yet, one of ``room`` pages.

    ``landing``: its pages there. ``then`` is told of the end, and whether it has moved.
    """

    source: int
    target: int
    then: Callable[[Crossing, bool, float], None]
    item: Item | None = None
    room: int = 0
    landing: Lease | None = None
    sent: int = 0
    progress: Progress | None = None

    @property
    def request(self) -> Item:
        """The item, once it has been chosen."""
        assert self.item is not None, "it has been chosen"
        return self.item


class Crossings:
    """All moves of one cluster. ``done``: how many requests went on elsewhere, ``still``: seconds for which each stood still."""

    def __init__(self, around: Around) -> None:
        self.done = 0
        self.still: list[float] = []
        self._around = around
        self._leaving: dict[int, int] = {}  # by item id: from where
        self._busy: Counter[int] = Counter()

    def busy(self, index: int) -> bool:
        """True when a request comes to or goes from an instance."""
        return self._busy[index] > 0

    @property
    def pending(self) -> bool:
        """True while any request is on its way."""
        return bool(self._leaving)

    def is_leaving(self, item: Item) -> bool:
        """True while the item is on its way, or about to be."""
        return item.item_id in self._leaving

    def begin(self, crossing: Crossing, now: float) -> None:
        """Ask the source for a request, or for the one that stands there."""
        self._busy[crossing.source] += 1
        self._busy[crossing.target] += 1
        if crossing.item is not None:
            self._leaving[crossing.item.item_id] = crossing.source
        self._tell(crossing.source, now, crossing, self._leave)

    def _tell(self, index: int, now: float, crossing: Crossing, action: Callable[[Crossing, float], None]) -> None:
        """A word to an instance: it is heard between two steps."""
        around = self._around
        around.later(now + WORD_SECONDS, lambda at: around.at_border(index, at, lambda border: action(crossing, border)))

    def _here(self, crossing: Crossing) -> bool:
        item = crossing.request
        return self._around.instances[crossing.source].scheduler.get(item.item_id) is item

    def _leave(self, crossing: Crossing, now: float) -> None:
        """At the source: which request, and what it needs."""
        if crossing.item is None:
            crossing.item = self._choose(crossing)
            if crossing.item is not None:
                self._leaving[crossing.item.item_id] = crossing.source
        if crossing.item is not None and self._here(crossing):
            self._tell(crossing.target, now, crossing, self._expect)
        else:
            self._end(crossing, False, now)

    def _choose(self, crossing: Crossing) -> Item | None:
        scheduler = self._around.instances[crossing.source].scheduler
        handover = scheduler.handover
        if sum(source == crossing.source for source in self._leaving.values()) >= AT_ONCE:
            return None
        able: dict[int, Sequence[Item]] = {
            item.item_id: [item] for item in scheduler.items if item.item_id not in self._leaving and handover.is_movable(item)
        }
        chosen = who_leaves(able, handover.wants, crossing.room)
        return None if chosen is None else able[chosen][0]

    def _expect(self, crossing: Crossing, now: float) -> None:
        """At the target: room, or none."""
        handover = self._around.instances[crossing.target].scheduler.handover
        crossing.landing = handover.expect(*handover.need([crossing.request]))
        if crossing.landing is None:
            self._end(crossing, False, now)
        else:
            self._tell(crossing.source, now, crossing, self._copy)

    def _copy(self, crossing: Crossing, now: float) -> None:
        """At the source: full pages go while the request does; when few are left, it leaves."""
        source, item, index = self._around.instances[crossing.source], crossing.request, crossing.source
        if not self._here(crossing) or not source.scheduler.handover.is_movable(item):
            self._end(crossing, False, now)
            return
        full = item.computed // source.model.page_tokens
        fresh, crossing.sent = full - crossing.sent, max(full, crossing.sent)
        around = self._around
        if fresh > LAST_PAGES:
            landed = now + fresh * source.model.page_seconds
            around.later(landed, lambda at: around.at_border(index, at, lambda border: self._copy(crossing, border)))
            return
        assert crossing.landing is not None, "it was expected"
        if len(item.pages) > len(crossing.landing.pages):
            self._end(crossing, False, now)  # it has outgrown what was expected
            return
        rest = len(item.pages) - full + fresh
        crossing.progress, held = source.let_go(item)
        source.scheduler.handover.drop(held)
        arrives = now + WORD_SECONDS + rest * source.model.page_seconds
        around.later(arrives, lambda at: around.at_border(crossing.target, at, lambda border: self._adopt(crossing, now, border)))

    def _adopt(self, crossing: Crossing, left: float, now: float) -> None:
        """At the target: it goes on."""
        assert crossing.progress is not None, "it has left its source"
        assert crossing.landing is not None, "it was expected"
        landing, crossing.landing = crossing.landing, None
        self._around.instances[crossing.target].take_in(crossing.request, crossing.progress, landing)
        self.done += 1
        self.still.append(now - left)
        self._end(crossing, True, now)

    def _end(self, crossing: Crossing, moved: bool, now: float) -> None:
        self._busy[crossing.source] -= 1
        self._busy[crossing.target] -= 1
        if crossing.item is not None:
            self._leaving.pop(crossing.item.item_id, None)
        if crossing.landing is not None:
            self._around.instances[crossing.target].scheduler.handover.drop(crossing.landing)
            crossing.landing = None
        crossing.then(crossing, moved, now)
