"""Two tenants on one engine: requests that come by the clock for a while, and requests that all wait at once."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.engine.loop import Engine
from headrace.evaluation.live_runs import LiveRun, Planned, Timing
from headrace.evaluation.statistics import percentile
from headrace.evaluation.trials import Bench
from headrace.evaluation.workload import Lengths
from headrace.scheduling.item import ItemState
from headrace.scheduling.shares import OUTPUT_COST

LIGHT, HEAVY = "light", "heavy"
TIMES = 10  # as many requests as the light tenant sends
_OVERLOAD = 3.0  # of what the machine can do
_BEFORE, _AFTER = 1.0, 0.5  # of the light tenant's mean gap: only the heavy one sends


@dataclass(frozen=True, slots=True)
class ClockLoad:
    """Requests that come within so many seconds."""

    planned: list[Planned]
    seconds: float

    @property
    def light(self) -> ClockLoad:
        """Those of the light tenant alone."""
        return ClockLoad([one for one in self.planned if one.share == LIGHT], self.seconds)


@dataclass(frozen=True, slots=True)
class Requests:
    """Draws requests of one shape for both tenants."""

    bench: Bench
    prompt: Lengths
    output: Lengths
    rng: random.Random

    def one(self, share: str, at: float = 0.0) -> Planned:
        """A request with a text of its own."""
        prompt = self.bench.prompt(self.prompt.draw(self.rng), self.rng)
        return Planned(prompt, max(2, self.output.draw(self.rng)), at, share)

    def several(self, share: str, count: int) -> list[Planned]:
        """So many that come at once."""
        return [self.one(share) for _ in range(count)]

    def by_the_clock(self, light: int, request_seconds: float) -> ClockLoad:
        """So many of the light tenant and ten times as many of the heavy one: three times as much as the machine can do."""
        gap = (TIMES + 1) * request_seconds / _OVERLOAD
        seconds = (light + _BEFORE + _AFTER) * gap
        planned = [self.one(HEAVY, self.rng.uniform(0, seconds)) for _ in range(round(TIMES * seconds / gap))]
        planned += [self.one(LIGHT, (_BEFORE + number + self.rng.uniform(0, 0.9)) * gap) for number in range(light)]
        return ClockLoad(planned, seconds)


@dataclass(frozen=True, slots=True)
class ClockRun:
    """What came of requests by the clock. ``unanswered``: of the light tenant, those that had no token at the end."""

    first_tokens: list[float]
    unanswered: int
    rate: float
    preemptions: int

    @property
    def p95(self) -> float:
        """Of the light tenant's times to the first token; who waits still counts with the time so far."""
        return percentile(sorted(self.first_tokens), 95)


def by_the_clock(engine: Engine, load: ClockLoad) -> ClockRun:
    """Requests as they come, until the time is over."""
    with LiveRun(engine) as live:
        live.schedule(load.planned)
        window = live.run(load.seconds)
        light = [timing for timing in live.timings if timing.planned.share == LIGHT]
        waits = [_first(timing, live.now) for timing in light]
        unanswered = sum(not timing.times for timing in light)
        return ClockRun(waits, unanswered, window.rate, engine.gauges().preemptions)


@dataclass(frozen=True, slots=True)
class BurstRun:
    """What came of requests that all wait at once. ``apart``: the largest difference of what both paid in any stretch of it
    in which both waited; ``tokens``: those of one request's prompt and answer, over all."""

    apart: float
    seconds: float
    tokens: int
    preemptions: int

    @property
    def rate(self) -> float:
        """Tokens of prompts and answers a second."""
        return self.tokens / self.seconds


def burst(engine: Engine, planned: Sequence[Planned]) -> BurstRun:
    """All at once, to their ends."""
    paid: dict[int, tuple[str, float]] = {}
    least = most = 0.0
    both = True
    began = time.perf_counter()
    with LiveRun(engine) as live:
        live.schedule(planned)
        while not live.done:
            live.advance()
            if both:
                both = _note(engine, paid)
                sums = defaultdict[str, float](float)
                for share, amount in paid.values():
                    sums[share] += amount
                difference = sums[HEAVY] - sums[LIGHT]
                least, most = min(least, difference), max(most, difference)
        seconds = time.perf_counter() - began
        tokens = sum(len(one.prompt) + one.output for one in planned)
        return BurstRun(most - least, seconds, tokens, engine.gauges().preemptions)


def _note(engine: Engine, paid: dict[int, tuple[str, float]]) -> bool:
    """What every request has paid for up to now; True while both tenants wait."""
    waits = set()
    for item in engine.scheduler.items:
        paid[item.item_id] = item.share, item.charged + OUTPUT_COST * item.generated
        if item.state is ItemState.WAITING:
            waits.add(item.share)
    return waits == {LIGHT, HEAVY}


def _first(timing: Timing, now: float) -> float:
    return timing.first if timing.times else now - timing.sent
