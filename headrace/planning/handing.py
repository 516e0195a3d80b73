"""Requests that go on in another simulated instance behind their first token: the real pull rule, and the real accounts of pages.

Every word between two engines is heard between two steps, as in reality, so a move takes as long as the steps that it waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.placement.roles import PullRule, Role, for_tokens, who_pulls
from headrace.scheduling.handover import Lease
from headrace.scheduling.item import Item

if TYPE_CHECKING:
    from headrace.planning.instance import Progress, SimulatedInstance

WORD_SECONDS = 4e-4
"""From one engine by way of the owner to the other."""
LAST_PAGES = 4
"""So many pages are sent while the request stands still; the others beside the steps."""


class Around(Protocol):
    """The cluster, as hand-offs need it."""

    instances: list[SimulatedInstance]

    def at_border(self, index: int, now: float, action: Callable[[float], None]) -> None:
        """Do this between two steps of an instance."""

    def later(self, time: float, action: Callable[[float], None]) -> None:
        """Do this at that time."""


@dataclass(slots=True, eq=False)
class Crossing:
    """A request under way from one instance to another. ``landing``: its pages there."""

    item: Item
    source: int
    target: int
    landing: Lease | None = None
    sent: int = 0
    progress: Progress | None = None


class Handing:
    """All hand-offs of one cluster. ``done``: requests that went on elsewhere, ``still``: seconds for which they stood still."""

    def __init__(self, around: Around, roles: Mapping[int, Role]) -> None:
        self.done = 0
        self.refused = 0
        self.still: list[float] = []
        self.rule = PullRule()
        self._around = around
        self._roles = roles
        self._places = [number for number in for_tokens(roles, roles) if roles[number] != "prefill"]
        self._queue: dict[int, int] = {}
        self._moving: Counter[int] = Counter()

    def ended(self, index: int, begun: Iterable[int], now: float) -> None:
        """A step of an instance has ended, by which these requests have got their first token."""
        if self._roles[index] == "prefill":
            self._queue.update(dict.fromkeys(begun, index))
        if self._queue:
            self.look(now)

    def look(self, now: float) -> None:
        """Begin what can begin, in the order in which requests got their first tokens."""
        instances = self._around.instances
        for number, source in list(self._queue.items()):
            item = instances[source].scheduler.get(number)
            if item is None:
                del self._queue[number]
                continue
            if self._moving[source] >= self.rule.at_once:
                continue
            pages = instances[source].scheduler.pool.pages_for(len(item.tokens) + 1)
            target = who_pulls({place: instances[place].load() for place in self._places}, pages, self.rule)
            if target is None:
                break
            del self._queue[number]
            self._moving[source] += 1
            self._tell(source, now, Crossing(item, source, target), self._leave)

    def _tell(self, index: int, now: float, crossing: Crossing, action: Callable[[Crossing, float], None]) -> None:
        """A word to an instance: it is heard between two steps."""
        around = self._around
        around.later(now + WORD_SECONDS, lambda at: around.at_border(index, at, lambda border: action(crossing, border)))

    def _here(self, crossing: Crossing) -> bool:
        return self._around.instances[crossing.source].scheduler.get(crossing.item.item_id) is crossing.item

    def _leave(self, crossing: Crossing, now: float) -> None:
        """At the source: what the request needs."""
        if self._here(crossing):
            self._tell(crossing.target, now, crossing, self._expect)
        else:
            self._end(crossing)

    def _expect(self, crossing: Crossing, now: float) -> None:
        """At the target: room, or none."""
        handover = self._around.instances[crossing.target].scheduler.handover
        crossing.landing = handover.expect(*handover.need([crossing.item]))
        if crossing.landing is None:
            self._stay(crossing)
        else:
            self._tell(crossing.source, now, crossing, self._copy)

    def _copy(self, crossing: Crossing, now: float) -> None:
        """At the source: full pages go while the request does; when few are left, it leaves."""
        source = self._around.instances[crossing.source]
        item = crossing.item
        if not self._here(crossing) or not source.scheduler.handover.is_movable(item):
            self._end(crossing)
            return
        full = item.computed // source.model.page_tokens
        fresh, crossing.sent = full - crossing.sent, max(full, crossing.sent)
        around, index = self._around, crossing.source
        if fresh > LAST_PAGES:
            landed = now + fresh * source.model.page_seconds
            around.later(landed, lambda at: around.at_border(index, at, lambda border: self._copy(crossing, border)))
            return
        assert crossing.landing is not None, "it was expected"
        if len(item.pages) > len(crossing.landing.pages):
            self._stay(crossing)  # it has outgrown what was expected
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
        self._around.instances[crossing.target].take_in(crossing.item, crossing.progress, landing)
        self.done += 1
        self.still.append(now - left)
        self._end(crossing)
        self.look(now)

    def _stay(self, crossing: Crossing) -> None:
        self.refused += 1
        self._end(crossing)
        self._queue[crossing.item.item_id] = crossing.source  # its next token enters it again

    def _end(self, crossing: Crossing) -> None:
        self._moving[crossing.source] -= 1
        if crossing.landing is not None:
            self._around.instances[crossing.target].scheduler.handover.drop(crossing.landing)
            crossing.landing = None
