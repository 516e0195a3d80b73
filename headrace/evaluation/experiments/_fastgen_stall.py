"""Streams that run while long prompts come: how long they wait between two tokens."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise

from headrace.engine.loop import Engine
from headrace.evaluation.experiment import Claim, Series, interleave
from headrace.evaluation.experiments._fastgen_setup import SPREAD, Sides
from headrace.evaluation.live_runs import LiveRun, Planned, Timing
from headrace.evaluation.statistics import median_ratio, percentile
from headrace.evaluation.workload import Lengths, arrival_times

LOAD = 0.7
_PROMPT_OVER_OUTPUT = 20
_STREAM_PROMPT, _STREAM_OUTPUT = 16, 256
_MOST_STREAMS = 64
_FEWEST_PROMPTS = 3  # expected in a run, which may be up to twice as long for it
_CURVE = (50, 75, 90, 95, 97, 98, 99, 99.5, 99.9, 100)


@dataclass(frozen=True, slots=True)
class _Work:
    """``streams`` answer long, one after the other; prompts of ``prompt`` tokens come ``rate`` a second for ``seconds``."""

    streams: int
    prompt: int
    rate: float
    seconds: float
    arrivals: tuple[Planned, ...]


@dataclass(frozen=True, slots=True)
class Gaps:
    """Ascending gaps between tokens of the running streams in seconds.

    ``met``: those in which a long prompt was waiting or being read. ``firsts``: seconds to the long prompts' first tokens.
    """

    every: tuple[float, ...]
    met: tuple[float, ...]
    firsts: tuple[float, ...]


def stall(sides: Sides) -> tuple[list[Claim], list[Series]]:
    """Measure what the engine can take, then let prompts come at 70 % of it, with prompts split and whole."""
    quick = sides.conditions.quick
    work = _plan(sides, prompt=512 if quick else 768, seconds=3.5 if quick else 15.0)
    runs = interleave(
        [partial(_run, sides, work, whole=False), partial(_run, sides, work, whole=True)],
        1 if quick else 2,
        partial(sides.conditions.report, "streams among prompts"),
    )
    split, whole = runs
    return _claims(work, split, whole), [*_series("prompts split", split), *_series("prompts whole", whole)]


def gaps_of(timings: Sequence[Timing], begin: float, end: float) -> Gaps:
    """Sort the gaps of a run by whether they met a long prompt; requests that came by the clock are the long prompts.

    Gaps that ended before ``begin`` don't count. ``end``: when the run was broken off. A stream that waited then has a gap of at
    least that wait, and it counts: streams that starve to the end must not look as if nothing had happened.
    """
    long = [timing for timing in timings if timing.client is None]
    spans = [(timing.sent, timing.times[0] if timing.times else math.inf) for timing in long]
    every, met = [], []
    for timing in timings:
        if timing.client is None or not timing.times:
            continue
        for before, after in pairwise(timing.times if timing.finished else [*timing.times, end]):
            if after <= begin:
                continue
            every.append(after - before)
            if any(sent < after and first > before for sent, first in spans):
                met.append(after - before)
    firsts = (timing.first for timing in long if timing.times)
    return Gaps(tuple(sorted(every)), tuple(sorted(met)), tuple(sorted(firsts)))


def _plan(sides: Sides, prompt: int, seconds: float) -> _Work:
    """Two thirds of a step of streams, and prompts at 70 % of what the engine reads beside them when there are always more."""
    sides.conditions.report("measuring the capacity", 0, 1)
    streams = max(8, min(2 * sides.knee // 3, _MOST_STREAMS))
    output = max(2, prompt // _PROMPT_OVER_OUTPUT)
    everyone = [*sides.clients(streams, _STREAM_PROMPT, _STREAM_OUTPUT), *sides.clients(4, prompt, output, seed=1)]
    with LiveRun(sides.split(), clients=everyone) as run:
        run.warm_up()
        capacity = run.run(max(1.5, seconds / 5)).prompt_tokens / prompt
    rate = LOAD * capacity
    seconds = min(max(seconds, _FEWEST_PROMPTS / rate), 2 * seconds)
    rng = random.Random(sides.conditions.seed + 5)
    lengths = Lengths("normal", prompt, SPREAD), Lengths("normal", output, SPREAD)
    arrivals = []
    for at in islice(arrival_times(rate, 1.0, rng), 10_000):
        if at > seconds:
            break
        arrivals.append(Planned(sides.bench.prompt(lengths[0].draw(rng), rng), max(2, lengths[1].draw(rng)), at))
    return _Work(streams, prompt, rate, seconds, tuple(arrivals))


def _run(sides: Sides, work: _Work, *, whole: bool) -> Gaps:
    engine: Engine = sides.whole() if whole else sides.split()
    streams = sides.clients(work.streams, _STREAM_PROMPT, _STREAM_OUTPUT)
    with LiveRun(engine, streams) as run:
        run.warm_up()
        begin = run.now
        run.schedule(work.arrivals)
        run.run(work.seconds)
        return gaps_of(run.timings, begin, run.now)


def _claims(work: _Work, split: Sequence[Gaps], whole: Sequence[Gaps]) -> list[Claim]:
    def compare(which: str, point: float) -> float:
        sides = ([percentile(getattr(gaps, which), point) for gaps in side] for side in (whole, split))
        return median_ratio(*sides)

    mix = (
        f"{work.streams} streams; prompts N({work.prompt}, 30 %) with a twentieth as output come at random, "
        f"{work.rate:.2f}/s = 70 % of what the engine reads beside the streams"
    )
    share = statistics.median(100 * len(gaps.met) / max(1, len(gaps.every)) for gaps in whole)
    steady = statistics.median(percentile(gaps.every, 95) / percentile(gaps.every, 50) for gaps in split)
    return [
        Claim(
            "stall", "p95 gap of streams while a prompt waits or is read, prompts whole / split", ">=", 3.7,
            compare("met", 95), "x", f"{mix}; whole, {share:.1f} % of gaps meet a prompt",
        ),
        Claim(
            "stall_p99", "p99 of all gaps, whole / split", ">=", 3.7, compare("every", 99), "x",
            f"p95 of all gaps: {compare('every', 95):.2f} x",
        ),
        Claim("stall_steady", "prompts split: p95 / p50 of all gaps", "<=", 1.5, steady, "x"),
    ]  # fmt: skip


def _series(name: str, runs: Sequence[Gaps]) -> list[Series]:
    def curve(which: str) -> tuple[float, ...]:
        return tuple(statistics.median(1000 * percentile(getattr(gaps, which), point) for gaps in runs) for point in _CURVE)

    points = tuple(float(point) for point in _CURVE)
    return [
        Series(f"{name}, all gaps", "percentile", "gap, ms", points, curve("every")),
        Series(f"{name}, gaps that meet a prompt", "percentile", "gap, ms", points, curve("met")),
    ]
