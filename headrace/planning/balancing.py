"""Full simulated instances give requests to free ones, by the pairing that serves, in rounds of simulated time."""

from __future__ import annotations

from headrace.placement.pairing import Pairing, PairingRule
from headrace.planning.crossings import Around, Crossing, Crossings

ROUND_SECONDS = 0.1
"""Between two looks, as when serving."""


class Balancing:
    """Looks at all loads now and then. ``refused``: moves that came to nothing."""

    def __init__(self, around: Around, crossings: Crossings, rule: PairingRule | None = None) -> None:
        self.refused = 0
        self._around = around
        self._crossings = crossings
        self._pairing = Pairing(rule)

    def look(self, now: float) -> None:
        """One round."""
        instances, crossings = self._around.instances, self._crossings
        for pair in self._pairing.round({index: instance.load(now) for index, instance in enumerate(instances)}):
            if not (crossings.busy(pair.source) or crossings.busy(pair.target)):
                crossings.begin(Crossing(pair.source, pair.target, self._ended, room=pair.room), now)

    def _ended(self, crossing: Crossing, moved: bool, now: float) -> None:
        self.refused += not moved
