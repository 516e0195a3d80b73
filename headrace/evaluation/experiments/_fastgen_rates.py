"""Throughput: under a promise, raw, and over step sizes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from headrace.engine.loop import Engine
from headrace.errors import HeadraceError
from headrace.evaluation.experiment import Claim, Conditions, Series, interleave
from headrace.evaluation.experiments._fastgen_setup import Sides, open_sides
from headrace.evaluation.live_runs import Client, LiveRun, Timing
from headrace.evaluation.statistics import Promise, keeps, median_ratio
from headrace.evaluation.trials import Bench

MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
_MARGIN = 0.9  # of the promised gap, for the steps that are longer than foreseen
_SWEEP = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_QUICK_SWEEP = (64, 128, 1024)
_STREAMS = 4  # that run while step sizes are compared


@dataclass(frozen=True, slots=True)
class _Service:
    """Requests, and a promise as a share of what was measured unloaded.

    The first token comes at 1/``first_slack`` of a lone prompt's rate, the others at 1/``slack`` of a lone stream's.
    """

    claim_id: str
    what: str
    prompt: int
    output: int
    first_slack: float
    slack: float
    clients: tuple[int, ...]
    seconds: float


def promised(sides: Sides) -> tuple[list[Claim], list[Series]]:
    """Requests a second that keep a promise (effective throughput), the best of a sweep over clients on each side."""
    quick = sides.conditions.quick
    services = (
        _Service(
            "sla", "prompt:output 20:1, half the unloaded rates promised: requests/s that keep it, split / whole",
            240 if quick else 400, 12 if quick else 20, 2, 2, (1, 2) if quick else (1, 2, 4), 1.2 if quick else 6.0,
        ),
        _Service(
            "sla_crowd", "prompt:output 8:1, 4 clients and more, a tenth of the unloaded rates promised: the same, split / whole",
            400 if quick else 800, 50 if quick else 100, 10, 10, (4,) if quick else (4, 8), 2.5 if quick else 8.0,
        ),
    )  # fmt: skip
    claims, series = [], []
    for service in services:
        claim, lines = _service(sides, service)
        claims.append(claim)
        series += lines
    return claims, series


def _service(sides: Sides, service: _Service) -> tuple[Claim, list[Series]]:
    prompt_rate, stream_rate = _unloaded(sides, service.prompt)
    promise = Promise(prompt_rate / service.first_slack, stream_rate / service.slack)
    target = max(1, int(1000 * _MARGIN / promise.stream_rate))
    sides_of: tuple[Callable[[], Engine], ...] = (partial(sides.split, gap_target_ms=target), sides.whole)
    variants = [partial(_kept, sides, service, promise, make, count) for count in service.clients for make in sides_of]
    found = [runs[0] for runs in interleave(variants, 1, partial(sides.conditions.report, "promised throughput"))]
    split, whole = [kept for kept, _ in found[0::2]], [kept for kept, _ in found[1::2]]
    most = max(finished for _, finished in found)
    best, other = ((max(values), service.clients[values.index(max(values))]) for values in (split, whole))
    note = (
        f"of {', '.join(map(str, service.clients))} clients best {best[0]:.2f}/s at {best[1]} and {other[0]:.2f}/s at {other[1]}; "
        f"promised {promise.prompt_rate:.0f} prompt tokens/s and {promise.stream_rate:.0f} tokens/s; "
        f"most that finished at all, kept or not: {most:.2f}/s"
    )
    clients = tuple(float(count) for count in service.clients)
    lines = [
        Series(f"{service.claim_id}: prompts {name}", "clients", "requests/s that keep the promise", clients, tuple(values))
        for name, values in (("split", split), ("whole", whole))
    ]
    one = 1 / service.seconds  # what can't be seen in this time counts as one kept request
    return Claim(service.claim_id, service.what, ">=", 2.0, max(split) / max(*whole, one), "x", note), lines


def _unloaded(sides: Sides, prompt: int) -> tuple[float, float]:
    """Prompt tokens/s of a prompt alone, and tokens/s of a stream alone."""
    with LiveRun(sides.whole(), clients=sides.clients(1, prompt, 24, seed=6)) as run:
        run.run(until=lambda: sum(timing.finished for timing in run.timings) >= 3)
    done = [timing for timing in run.timings if timing.finished]
    rates = [len(timing.planned.prompt) / timing.first for timing in done]
    return statistics.median(rates), 1 / statistics.median(gap for timing in done for gap in timing.gaps())


def _kept(sides: Sides, service: _Service, promise: Promise, make: Callable[[], Engine], count: int) -> tuple[float, float]:
    """Requests a second that kept the promise, and that finished."""
    with LiveRun(make(), clients=sides.clients(count, service.prompt, service.output, seed=7)) as run:
        # all clients begin at once, which no promise survives: their first requests are not counted
        run.warm_up()
        begin = run.now
        run.run(service.seconds)
    counted = [timing for timing in run.timings if timing.finished and timing.times[-1] > begin]
    seconds = run_end(run.timings) - begin
    return sum(_keeps(promise, timing) for timing in counted) / seconds, len(counted) / seconds


def run_end(timings: Sequence[Timing]) -> float:
    """When the last token came."""
    return max(timing.times[-1] for timing in timings if timing.times)


def _keeps(promise: Promise, timing: Timing) -> bool:
    return keeps(promise, len(timing.planned.prompt), timing.first, timing.gaps())


def no_loss(sides: Sides) -> list[Claim]:
    """Tokens a second in a closed loop, long answers and long prompts: the same requests from the first to the last on both sides.

    In a window of time each side would be somewhere else in the work, and a row of a prompt costs less than a generated one.
    """
    quick = sides.conditions.quick
    scale, each, rounds = (2, 1, 1) if quick else (3, 2, 3)
    mixes = (("loss_1_to_4", "1:4", 0.97, 8 * scale, 32 * scale), ("loss_20_to_1", "20:1", 1.0, 120 * scale, 6 * scale))
    claims = []
    for claim_id, name, asked, prompt, output in mixes:
        variants = [
            partial(_whole_rate, make, partial(sides.clients, 12, prompt, output, seed=8, each=each))
            for make in (sides.split, sides.whole)
        ]
        split, whole = interleave(variants, rounds, partial(sides.conditions.report, f"tokens/s at {name}"))
        what = f"tokens/s of 12 clients with prompt:output {name}, split / whole"
        note = f"{statistics.median(split):.0f} and {statistics.median(whole):.0f} tokens/s"
        claims.append(Claim(claim_id, what, ">=", asked, median_ratio(split, whole), "x", note))
    return claims


def _whole_rate(make: Callable[[], Engine], clients: Callable[[], list[Client]]) -> float:
    """Tokens/s of clients that end, until the last has its last token."""
    with LiveRun(make(), clients=clients()) as run:
        return run.run().rate


def _rate(make: Callable[[], Engine], clients: Callable[[], list[Client]], seconds: float, warm: int | None = None) -> float:
    """Tokens/s once every client, or each of the first ``warm``, has had its first token."""
    with LiveRun(make(), clients=clients()) as run:
        run.warm_up(warm)
        return run.run(seconds).rate


def knees(sides: Sides) -> tuple[list[Claim], list[Series]]:
    """The calibrated budget against every other one, for the model at hand and for one with other weights."""
    conditions, own = sides.conditions, sides.bench.built.model.name
    claim, line = _knee(sides, "knee", own)
    other = next(name for name in MODELS if name != own)
    try:
        with Bench(Conditions(conditions.quick, conditions.seed, other, conditions.threads, conditions.report)) as bench:
            second, second_line = _knee(open_sides(bench, conditions), "knee_other_weights", other)
    except HeadraceError as error:
        if error.code != "model_not_found":
            raise
        missing = Claim("knee_other_weights", _knee_text(other), ">=", 0.95, math.nan, "x", error.message)
        return [claim, missing], [line]
    return [claim, second], [line, second_line]


def _knee_text(model: str) -> str:
    return f"{model}: tokens/s with the calibrated budget / with the best of a sweep, same gap target"


def _knee(sides: Sides, claim_id: str, model: str) -> tuple[Claim, Series]:
    quick = sides.conditions.quick
    sizes = _QUICK_SWEEP if quick else _SWEEP
    target = math.ceil(1000 * (sides.split().scheduler.budget.seconds or 0.0))
    makes: list[Callable[[], Engine]] = [partial(sides.split, gap_target_ms=target)]
    makes += [partial(sides.split, step_tokens=size, gap_target_ms=target) for size in sizes]
    variants = [partial(_rate, make, partial(_reading, sides), 0.4 if quick else 0.6, _STREAMS) for make in makes]
    rates = interleave(variants, 2 if quick else 5, partial(sides.conditions.report, f"step sizes of {model}"))
    calibrated, swept = rates[0], rates[1:]
    against = [median_ratio(calibrated, one) for one in swept]
    best = min(range(len(sizes)), key=lambda index: against[index])
    note = f"calibrated {sides.knee}, best {sizes[best]}, gap target {target} ms"
    line = Series(
        f"tokens/s of {model}", "rows a step aims at", "tokens/s", tuple(float(size) for size in sizes),
        tuple(statistics.median(one) for one in swept),
    )  # fmt: skip
    return Claim(claim_id, _knee_text(model), ">=", 0.95, against[best], "x", note), line


def _reading(sides: Sides) -> list[Client]:
    """4 streams, and clients that send prompts of 256 tokens: there are always more than a step takes."""
    return [*sides.clients(_STREAMS, 16, 512, seed=9), *sides.clients(4, 256, 2, seed=10)]
