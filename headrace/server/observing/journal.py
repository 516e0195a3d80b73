"""The newest requests, and the newest steps while somebody watches: bounded, and in this process only."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import NamedTuple

from headrace.engine.watch_wire import StepReport
from headrace.server.observing.life import Life
from headrace.server.observing.origin import ORIGIN

MOST_LIVES = 500
MOST_STEPS = 4096


class NumberedStep(NamedTuple):
    """A step with its place in the order in which steps were heard of."""

    number: int
    model: str
    report: StepReport


class Journal:
    """Lives of requests that run (at most as many as the queue lets in) and of the newest 500 that have ended."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, int], Life] = {}
        self._ended: deque[Life] = deque(maxlen=MOST_LIVES)
        self._recent: OrderedDict[tuple[str, int], Life] = OrderedDict()  # ended while their last steps may still be reported
        self._steps: deque[NumberedStep] = deque(maxlen=MOST_STEPS)
        self._next = 1

    def begin(self, life: Life) -> None:
        """A request has gone to its engine."""
        self._running[life.model, life.engine_id] = life
        origin = ORIGIN.get()
        if origin is not None and not origin.answered:
            origin.lives.append(life)

    def end(self, life: Life) -> None:
        """Nothing more comes for it. A second call does nothing."""
        place = life.model, life.engine_id
        if self._running.get(place) is not life:
            return
        del self._running[place]
        life.ended = time.monotonic() - life.started
        self._ended.append(life)
        self._recent[place] = life
        if len(self._recent) > MOST_LIVES:
            self._recent.popitem(last=False)

    def lives(self) -> list[Life]:
        """What runs, then what has ended, the newest first."""
        return [*reversed(self._running.values()), *reversed(self._ended)]

    def note_steps(self, model: str, reports: Iterable[StepReport]) -> None:
        """Steps of a model's engine; requests that they name remember them."""
        for report in reports:
            self._steps.append(NumberedStep(self._next, model, report))
            self._next += 1
            for engine_id, rows in report.chunks:
                life = self._find(model, engine_id)
                if life is not None:
                    life.chunk(report.began, report.seconds, rows)
            for engine_id in report.preempted:
                life = self._find(model, engine_id)
                if life is not None:
                    life.setback(report.began)

    def steps(self, since: int, most: int) -> list[NumberedStep]:
        """Steps after that number, the newest ``most`` of them."""
        found = [step for step in self._steps if step.number > since]
        return found[-most:]

    def _find(self, model: str, engine_id: int) -> Life | None:
        return self._running.get((model, engine_id)) or self._recent.get((model, engine_id))
