"""How many simulated instances run: the scaling that serves, with the time that a start takes and the moves that empty one."""

from __future__ import annotations

from typing import Literal, Protocol

from headrace.placement.dispatch import Newcomer, choose_instance
from headrace.placement.load import Load
from headrace.placement.scaling import Scaling, ScalingRule
from headrace.planning.crossings import AT_ONCE, Around, Crossing, Crossings

LOOK_SECONDS = 1.0
START_SECONDS = 3.0
"""From the decision until an instance serves: its process starts and maps the model."""

State = Literal["serving", "leaving", "starting", "gone"]


class Pool(Around, Protocol):
    """The cluster, as scaling needs it."""

    def tell(self, index: int) -> None:
        """Tell the dispatcher an instance's numbers."""


class Resizing:
    """Begins with the least. ``spent``: seconds of all instances that were there; ``begun`` and ``ended``: how many."""

    def __init__(self, pool: Pool, crossings: Crossings, rule: ScalingRule, *, moves: bool = True) -> None:
        self.spent = 0.0
        self.begun = 0
        self.ended = 0
        self._pool = pool
        self._crossings = crossings
        self._scaling = Scaling(rule)
        self._moves = moves
        self._last = 0.0
        self.states: list[State] = ["serving" if number < rule.least else "gone" for number in range(len(pool.instances))]
        for number, state in enumerate(self.states):
            pool.instances[number].leaving = state != "serving"

    def look(self, now: float) -> None:
        """More, fewer, or as it is; and go on emptying those that leave."""
        self.spent += (now - self._last) * sum(state != "gone" for state in self.states)
        self._last = now
        loads = self._serving()
        if "starting" not in self.states:
            direction = self._scaling.look(loads)
            if direction > 0:
                self._grow(now)
            elif direction < 0:
                victim = self._scaling.victim(loads)
                if victim is not None:
                    self._set(victim, "leaving")
        for number, state in enumerate(self.states):
            if state == "leaving":
                self._empty(number, now)

    def _serving(self) -> dict[int, Load]:
        return {number: self._pool.instances[number].load() for number, state in enumerate(self.states) if state == "serving"}

    def _grow(self, now: float) -> None:
        """One that is still being emptied stays; else another one starts."""
        if "leaving" in self.states:
            self._set(self.states.index("leaving"), "serving")
        elif "gone" in self.states:
            number = self.states.index("gone")
            self.begun += 1
            self._set(number, "starting")
            self._pool.later(now + START_SECONDS, lambda at: self._set(number, "serving"))

    def _set(self, number: int, state: State) -> None:
        self.states[number] = state
        self._pool.instances[number].leaving = state != "serving"
        self._pool.tell(number)

    def _empty(self, number: int, now: float) -> None:
        instance = self._pool.instances[number]
        if not instance.live and not self._crossings.busy(number):
            self.ended += 1
            self._set(number, "gone")
        elif self._moves:
            self._move_away(number, now)

    def _move_away(self, number: int, now: float) -> None:
        """So many at once, one after the other until all are gone."""
        instance, places = self._pool.instances[number], self._serving()
        free = [item for item in instance.scheduler.items if not self._crossings.is_leaving(item)]
        going = instance.live - len(free)
        for item in free[: max(0, AT_ONCE - going)]:
            target = choose_instance(places, Newcomer(0))
            if target is not None:
                self._crossings.begin(Crossing(number, target, self._went, item), now)

    def _went(self, crossing: Crossing, moved: bool, now: float) -> None:
        if moved and self.states[crossing.source] == "leaving":
            self._empty(crossing.source, now)
