"""Requests that go on in another simulated instance behind their first token, by the pull rule that serves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from headrace.placement.roles import PullRule, Role, for_tokens, who_pulls
from headrace.planning.crossings import Around, Crossing, Crossings


class Handing:
    """All hand-offs of one cluster. ``done``: requests that went on elsewhere, ``refused``: that could not when it was tried."""

    def __init__(self, around: Around, crossings: Crossings, roles: Mapping[int, Role]) -> None:
        self.done = 0
        self.refused = 0
        self.rule = PullRule()
        self._around = around
        self._crossings = crossings
        self._roles = roles
        self._places = [number for number in for_tokens(roles, roles) if roles[number] != "prefill"]
        self._queue: dict[int, int] = {}
        self._moving: Counter[int] = Counter()

    @property
    def still(self) -> list[float]:
        """Seconds for which each request that went on elsewhere stood still."""
        return self._crossings.still

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
            self._crossings.begin(Crossing(source, target, self._ended, item), now)

    def _ended(self, crossing: Crossing, moved: bool, now: float) -> None:
        self._moving[crossing.source] -= 1
        item = crossing.request
        if moved:
            self.done += 1
            self.look(now)
        elif self._around.instances[crossing.source].scheduler.get(item.item_id) is item:
            self.refused += 1
            self._queue[item.item_id] = crossing.source  # its next token enters it again
