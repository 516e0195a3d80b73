"""What composing a step costs, and how well its time is foreseen."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise

from headrace.engine.loop import Engine
from headrace.engine.wire import Gauges
from headrace.evaluation.experiment import Claim
from headrace.evaluation.experiments._fastgen_setup import Sides
from headrace.evaluation.live_runs import LiveRun, Planned

_SHORT_PROMPT, _OUTPUT = 2, 300


def overhead(sides: Sides) -> list[Claim]:
    """Time of a step outside the model, with 256 and 64 live streams and with one."""
    steps = 25 if sides.conditions.quick else 120
    claims = []
    for number, (live, share) in enumerate(((256, 3.0), (64, 3.0), (1, None))):
        sides.conditions.report("time outside the model", number, 3)
        spent, whole = _spent(sides, live, steps)
        median, seconds = statistics.median(spent), statistics.median(whole)
        note = f"{1000 * median:.2f} ms of {1000 * seconds:.1f} ms"
        if share is not None:
            what = f"plan, assemble, sample and commit with {live} live streams"
            claims.append(Claim(f"overhead_{live}", what, "<=", share, 100 * median / seconds, "% of a step", note))
        else:
            what = "plan, assemble, sample and commit with one live stream"
            claims.append(Claim("overhead_1", what, "<=", 0.3, 1000 * median, "ms a step", note))
    return claims


def _spent(sides: Sides, live: int, steps: int) -> tuple[list[float], list[float]]:
    """(seconds outside the model, seconds in all) of each step while ``live`` streams generate."""
    rng = random.Random(sides.conditions.seed + 11)
    planned = [Planned(sides.bench.prompt(_SHORT_PROMPT, rng), _OUTPUT) for _ in range(live)]
    engine = sides.split()
    with LiveRun(engine) as run:
        run.schedule(planned)
        run.run(until=lambda: len(run.timings) == live and all(timing.times for timing in run.timings))
        states = [engine.gauges()]
        for _ in range(steps):
            run.advance()
            states.append(engine.gauges())
    return _differences(states)


def _differences(states: list[Gauges]) -> tuple[list[float], list[float]]:
    spent = [after.overhead_seconds - before.overhead_seconds for before, after in pairwise(states)]
    return spent, [after.step_seconds - before.step_seconds for before, after in pairwise(states)]


def foreseen(sides: Sides) -> list[Claim]:
    """Streams with short and long contexts while prompts of every length are read."""
    quick = sides.conditions.quick
    sides.conditions.report("foreseeing steps", 0, 1)
    rng = random.Random(sides.conditions.seed + 12)
    longest = min(4096, sides.bench.built.engine.limits.context_length) - 200
    contexts = (64, 256, 1024) if quick else (64, 128, 256, 512, 1024, 2048, longest)
    streams = [Planned(sides.bench.prompt(length, rng), 150) for length in contexts]
    engine: Engine = sides.split()
    with LiveRun(engine, [*sides.clients(2, 200, 40, seed=13), *sides.clients(1, 800, 20, seed=14)]) as run:
        run.schedule(streams)
        run.run(3.0 if quick else 15.0)
    errors = engine.scheduler.cost.errors()
    note = f"{errors.count} steps, contexts from 64 to {contexts[-1]}; error {100 * errors.median:.1f} % median, "
    note += f"{100 * errors.p95:.0f} % p95"
    return [Claim("foreseen", "steps whose time was foreseen within 10 %", ">=", 95, 100 * errors.within_tenth, "% of steps", note)]
