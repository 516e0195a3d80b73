"""How much of each step training gets, and which job: FlexLLM's hybrid token scheduler, in seconds instead of tokens.

Serving composes its step first and as if there were no training. What is left of the latency target is filled with units of
training, whose time is foreseen from what such units took. Prompts that wait or are being read leave nothing; an idle engine
leaves everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MOST_PASSED_OVER = 256  # steps without room in a row, after which one unit runs all the same
SLACK = 1.5  # without a target of its own a step of streams may take this many times its own time
_RATE = 0.2
_CLIP = 3.0
_MARGIN = 1.2  # a unit that takes longer than foreseen lengthens a gap, one that waits costs little
_RELENTING = 0.98
_FIRST_GUESS = 0.012  # seconds for 10⁹ multiply-adds, before anything was measured
_FIXED = 2e-4  # seconds of a unit without any


@dataclass(frozen=True, slots=True)
class ServingLoad:
    """What serving does now: ``live`` requests, of which ``prompts`` wait or are not read to their end; ``step_seconds``: what
    its last step took."""

    live: int
    prompts: int
    step_seconds: float


class TrainingShare:
    """The policy, with no clock. ``target``: seconds that a step may take while streams wait for their next token; ``None``: as
    :data:`SLACK` says. ``bound``: of both, if it is finite."""

    def __init__(self, target: float | None, bound: float = math.inf) -> None:
        self._target, self._bound = target, bound
        self._seconds: dict[str, float] = {}
        self._served: dict[str, float] = {}
        self._passed_over = 0

    def allowance(self, load: ServingLoad) -> float:
        """Seconds that training may take before the next step."""
        if load.live == 0:
            return math.inf
        if load.prompts:
            return 0.0
        target = self._target if self._target is not None else min(self._bound, SLACK * load.step_seconds)
        return max(0.0, target - load.step_seconds)

    def fits(self, kind: str, work: float, left: float, *, first: bool) -> bool:
        """Whether a unit may run with ``left`` seconds. ``first``: of its step; after many steps without any, one does."""
        if _MARGIN * self.predict(kind, work) <= left:
            self._passed_over = 0
            return True
        if first and left > 0.0:
            self._passed_over += 1
            if kind in self._seconds:  # what never runs is never measured again: too dark a view must brighten by itself
                self._seconds[kind] *= _RELENTING
            if self._passed_over >= MOST_PASSED_OVER:
                self._passed_over = 0
                return True
        return False

    def predict(self, kind: str, work: float) -> float:
        """Expected seconds of a unit."""
        return _FIXED + work * self._seconds.get(kind, _FIRST_GUESS)

    def observe(self, kind: str, work: float, seconds: float) -> None:
        """Learn from a unit that ran."""
        if work > 0.0:
            known = self._seconds.get(kind, _FIRST_GUESS)
            rate = min(max(seconds - _FIXED, 0.0) / work, _CLIP * known)  # a thread that lost its core says little
            self._seconds[kind] = known + _RATE * (rate - known)

    def enter(self, job: str) -> None:
        """A job begins: it owes nothing, and nobody owes it the past."""
        self._served[job] = min(self._served.values(), default=0.0)

    def leave(self, job: str) -> None:
        """A job is over."""
        self._served.pop(job, None)

    def charge(self, job: str, seconds: float, weight: int) -> None:
        """A job was given time, of which it is due ``weight`` parts."""
        self._served[job] = self._served.get(job, 0.0) + seconds / weight

    def next_job(self, ready: Iterable[str]) -> str | None:
        """Of the jobs that have something to run, the one that was given least."""
        return min(ready, key=lambda job: (self._served.get(job, 0.0), job), default=None)
