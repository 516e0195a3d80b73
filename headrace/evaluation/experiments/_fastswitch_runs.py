"""One run of conversations whose priorities change, and what is measured of it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from headrace.engine.loop import Engine
from headrace.engine.wire import MoveGauges, Submit
from headrace.evaluation.trials import Key, Trace
from headrace.memory.free_runs import runs_of
from headrace.scheduling.item import Item, ItemState
from headrace.scheduling.priority_changes import PriorityChange, random_priorities
from headrace.scheduling.scheduler import Scheduler


@dataclass(slots=True)
class Run:
    """``times``: when each token of each request came, from the start. ``stalled``: seconds of waiting for pages."""

    traces: dict[Key, Trace] = field(default_factory=dict)
    times: dict[int, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    preemptions: int = 0
    recomputed: int = 0
    carried_seconds: float = 0.0
    plan_seconds: float = 0.0
    disk_bytes: int = 0
    mean_run: float = 0.0
    moves: MoveGauges = field(default_factory=MoveGauges)

    def gaps(self) -> list[float]:
        """Times between tokens, sorted."""
        return sorted(b - a for times in self.times.values() for a, b in pairwise(times))

    def first_tokens(self) -> list[float]:
        """Times to the first token, sorted."""
        return sorted(times[0] for times in self.times.values())

    @property
    def tokens_a_second(self) -> float:
        """Tokens that were delivered, by the run's length."""
        return sum(map(len, self.times.values())) / self.seconds


def preempt_some(scheduler: Scheduler, items: Sequence[Item], rng: random.Random) -> None:
    """A third of the running requests must go, needed or not."""
    running = [item for item in items if item.state is ItemState.RUNNING]
    for item in rng.sample(running, -(-len(running) // 3)):
        scheduler.preempt(item)


def preempt_and_reorder(scheduler: Scheduler, items: Sequence[Item], rng: random.Random) -> None:
    """As :func:`preempt_some`, and others go first afterwards."""
    preempt_some(scheduler, items, rng)
    random_priorities(scheduler, items, rng)


def preempt_all(scheduler: Scheduler, items: Sequence[Item], rng: random.Random) -> None:
    """Every running request must go, all the way."""
    for item in sorted(items, key=lambda one: rng.random()):
        scheduler.preempt(item)


def run(engine: Engine, submits: Sequence[Submit], pattern: PriorityChange | None, every: int, seed: int = 0) -> Run:
    """All requests at once, to their ends; the pattern disturbs each ``every`` steps. Closes the engine."""
    result, rng = Run(), random.Random(seed)
    for submit in submits:
        engine.submit(submit)
    before, began = _written_bytes(), time.perf_counter()
    held: list[tuple[int, float]] = []
    while engine.live:
        outputs = engine.step()
        now = time.perf_counter() - began
        for output in outputs.outputs if outputs is not None else ():
            result.traces.setdefault((output.request_id, output.choice), Trace()).take(output)
            result.times.setdefault(output.request_id, []).extend([now] * len(output.tokens))
        result.steps += outputs is not None
        items = [choice.item for choice in engine._choices.values()]
        held.append((engine.scheduler.pool.held, _mean_run(items)))
        if pattern is not None and outputs is not None and result.steps % every == 0:
            pattern(engine.scheduler, items, rng)
            if pattern is preempt_all and engine._moving is not None:
                engine._moving.settle()
    result.seconds = time.perf_counter() - began
    while engine.moving:
        engine.step()
    engine.check_integrity()
    counters, gauges = engine.scheduler.counters, engine.gauges()
    result.preemptions, result.recomputed = counters.preemptions, counters.recomputed
    result.moves = gauges.moves or MoveGauges()
    result.carried_seconds = engine._moving.mover.seconds if engine._moving is not None else 0.0
    result.disk_bytes = _written_bytes() - before
    fullest = [mean for pages, mean in held if pages >= 0.9 * max(held)[0]]
    result.mean_run = sum(fullest) / len(fullest)
    engine.close()
    return result


def _mean_run(items: Sequence[Item]) -> float:
    held = [item.pages for item in items if item.pages]
    return sum(map(len, held)) / max(1, sum(len(runs_of(pages)) for pages in held))


def _written_bytes() -> int:
    """Bytes that this process has caused to be written to storage, by the kernel's own count."""
    with open("/proc/self/io", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "write_bytes":
                return int(value)
    return 0
