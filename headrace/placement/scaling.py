"""How many instances there should be, and which one goes. Pure; a look is a call, the caller has the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.placement.load import Load, freeness

MOST_INSTANCES = 64
_SLACK = 1.5


@dataclass(frozen=True, slots=True)
class ScalingRule:
    """Between ``least`` and ``most`` instances; what is wrong must be so for ``patience`` looks in a row, or for ``calm`` ones
    before an instance goes.

    More when the mean freeness is below ``low``, or an instance has more than ``crowd`` requests on average: with plenty of pages
    it is computing that they lack. Fewer when the others could take what there is and would be neither.
    """

    low: float = 10.0
    crowd: float = 6.0
    least: int = 1
    most: int = MOST_INSTANCES
    patience: int = 3
    calm: int = 10


def read_span(words: Sequence[str]) -> ScalingRule | None:
    """``LEAST..MOST`` instances; ``None`` for what is not written so. Raises ``invalid_setting`` for bounds that can't be."""
    low, dots, high = words[0].strip().partition("..") if len(words) == 1 else ("", "", "")
    if not dots:
        return None
    least, most = (int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0 for text in (low, high))
    if not 1 <= least < most <= MOST_INSTANCES:
        message = f"instances that follow the load are LEAST..MOST with 1 to {MOST_INSTANCES}, as 1..4, not {words[0][:32]!r}"
        raise HeadraceError("invalid_setting", message, param="instances")
    return ScalingRule(least=least, most=most)


class Scaling:
    """Looks at the loads now and then ("Llumnix" keeps the mean freeness in a band)."""

    def __init__(self, rule: ScalingRule | None = None) -> None:
        self.rule = rule or ScalingRule()
        self._outside = 0  # looks in a row: below the band counts down, above it up

    def look(self, loads: Mapping[int, Load]) -> int:
        """1: one more, −1: one less, 0: as it is. Instances that are being emptied don't count."""
        rule = self.rule
        staying = [load for load in loads.values() if not load.leaving]
        if not staying:
            return 1
        mean = math.fsum(freeness(load, whole_queue=True) for load in staying) / len(staying)
        requests = sum(load.running + load.waiting for load in staying)
        crowded = mean < rule.low or requests > rule.crowd * len(staying)
        if crowded and len(staying) < rule.most:
            self._outside = min(-1, self._outside - 1)
        elif not crowded and len(staying) > rule.least and self._fits_in_fewer(staying):
            self._outside = max(1, self._outside + 1)
        else:
            self._outside = 0
        if abs(self._outside) < (rule.calm if self._outside > 0 else rule.patience):
            return 0
        direction = -1 if self._outside > 0 else 1
        self._outside = 0
        return direction

    def victim(self, loads: Mapping[int, Load]) -> int | None:
        """The instance to empty: fewest running requests, the last one of equals."""
        staying = {number: load for number, load in loads.items() if not load.leaving}
        return min(staying, key=lambda number: (staying[number].running, -number), default=None)

    def _fits_in_fewer(self, staying: list[Load]) -> bool:
        """What is here now would leave the others well within both bounds, so that none of them is missed at once."""
        held = sum(load.held + load.queue for load in staying)
        requests = sum(load.running + load.waiting for load in staying)
        rest = sum(load.pages for load in staying) - max(load.pages for load in staying)
        free = (rest - held) / max(1, requests)
        return free > _SLACK * self.rule.low and _SLACK * requests <= self.rule.crowd * (len(staying) - 1)
