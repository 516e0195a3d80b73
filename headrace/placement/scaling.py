"""How many instances there should be, and which one goes. Pure; a look is a call, the caller has the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.placement.load import Load, freeness


@dataclass(frozen=True, slots=True)
class ScalingRule:
    """Mean freeness stays between ``low`` and ``high``; it must be outside for ``patience`` looks in a row."""

    low: float = 10.0
    high: float = 60.0
    least: int = 1
    most: int = 64
    patience: int = 3


class Scaling:
    """Looks at the loads now and then ("Llumnix": the mean freeness is kept in a band)."""

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
        if mean < rule.low and len(staying) < rule.most:
            self._outside = min(-1, self._outside - 1)
        elif mean > rule.high and len(staying) > rule.least and self._fits_in_fewer(staying):
            self._outside = max(1, self._outside + 1)
        else:
            self._outside = 0
        if abs(self._outside) < rule.patience:
            return 0
        direction = -1 if self._outside > 0 else 1
        self._outside = 0
        return direction

    def victim(self, loads: Mapping[int, Load]) -> int | None:
        """The instance to empty: fewest running requests, the last one of equals."""
        staying = {number: load for number, load in loads.items() if not load.leaving}
        return min(staying, key=lambda number: (staying[number].running, -number), default=None)

    def _fits_in_fewer(self, staying: list[Load]) -> bool:
        """What is held now must not put the others below the band."""
        held = sum(load.held + load.queue for load in staying)
        running = sum(load.running + load.waiting for load in staying)
        rest = sum(load.pages for load in staying) - max(load.pages for load in staying)
        return (rest - held) / max(1, running) > self.rule.low
