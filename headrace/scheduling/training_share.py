"""How much of each step training gets, and which job: FlexLLM's hybrid token scheduler, in seconds instead of tokens.

Serving composes its step first and as if there were no training. What is left of the latency target is filled with units of
training. Both sides are foreseen high: what such units, and such steps behind units, took on average and a part for how far they
strayed from it, as senders do who wait for an answer ("Congestion Avoidance and Control", Jacobson 1988). So where times scatter,
because caches are shared or cores are lent, less is filled. Prompts that wait or are being read leave nothing; an idle engine
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
_STRAYING = 2.0  # mean deviations above the mean: what takes longer than foreseen lengthens a gap, what waits costs little
_RELENTING = 0.99  # a unit that runs against what is foreseen lengthens a gap: seldom enough
_FIRST_GUESS = 0.012  # seconds for 10⁹ multiply-adds, before anything was measured
_UNKNOWN = 3.0  # a kind that never ran may be so much slower than the slowest that did
_FIXED = 2e-4  # seconds of a unit without any


@dataclass(frozen=True, slots=True)
class ServingLoad:
    """What serving does now: ``live`` requests, of which ``prompts`` wait or are not read to their end; ``step_seconds``: what
    its last step took."""

    live: int
    prompts: int
    step_seconds: float


@dataclass(slots=True)
class _Foreseen:
    """A quantity that is measured now and then: its mean (at first a guess), and how far measurements are from it on average."""

    mean: float
    strayed: float = 0.0
    measured: bool = False
    hope: float = 1.0

    def learn(self, value: float) -> None:
        """One more measurement; far ones count less: a thread that lost its core says little."""
        value = min(value, _CLIP * self.mean)
        if not self.measured:
            self.mean, self.measured = value, True
        self.hope = 1.0
        self.strayed += _RATE * (abs(value - self.mean) - self.strayed)
        self.mean += _RATE * (value - self.mean)

    def relent(self) -> None:
        """What never runs is never measured again: too dark a view must brighten by itself."""
        self.hope *= _RELENTING

    @property
    def high(self) -> float:
        """What it will hardly exceed."""
        return self.hope * (self.mean + _STRAYING * self.strayed)


class TrainingShare:
    """The policy, with no clock. ``target``: seconds that a step may take while streams wait for their next token; ``None``: as
    :data:`SLACK` says. ``bound``: of both, if it is finite."""

    def __init__(self, target: float | None, bound: float = math.inf) -> None:
        self._target, self._bound = target, bound
        self._rates: dict[str, _Foreseen] = {}  # seconds for 10⁹ multiply-adds, of each kind of unit
        self._step: _Foreseen | None = None  # seconds of a step without prompts
        self._served: dict[str, float] = {}
        self._passed_over = 0

    def allowance(self, load: ServingLoad) -> float:
        """Seconds that training may take before the next step. To be called once behind each step."""
        if load.live == 0:
            return math.inf
        if load.prompts:
            return 0.0
        if self._target is None:
            return max(0.0, min(self._bound, SLACK * load.step_seconds) - load.step_seconds)
        if self._step is None:
            self._step = _Foreseen(load.step_seconds)
        self._step.learn(load.step_seconds)
        return max(0.0, self._target - max(load.step_seconds, self._step.high))

    def fits(self, kind: str, work: float, left: float, *, first: bool) -> bool:
        """Whether a unit may run with ``left`` seconds. ``first``: of its step; after many steps without any, one does."""
        if self.predict(kind, work) <= left:
            self._passed_over = 0
            return True
        if first and left > 0.0:
            self._passed_over += 1
            self._known(kind).relent()
            if self._passed_over >= MOST_PASSED_OVER:
                self._passed_over = 0
                return True
        return False

    def predict(self, kind: str, work: float) -> float:
        """Seconds that a unit will hardly exceed."""
        return _FIXED + work * self._known(kind).high

    def observe(self, kind: str, work: float, seconds: float) -> None:
        """Learn from a unit that ran."""
        if work > 0.0:
            self._known(kind).learn(max(seconds - _FIXED, 0.0) / work)

    def _known(self, kind: str) -> _Foreseen:
        """What is known about a kind; one that never ran is likened to the slowest other, and worse."""
        if kind not in self._rates:
            slowest = max((rate.high for rate in self._rates.values()), default=_FIRST_GUESS)
            self._rates[kind] = _Foreseen(_UNKNOWN * slowest)
        return self._rates[kind]

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
