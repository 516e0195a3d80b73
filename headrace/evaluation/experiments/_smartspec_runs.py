"""The measurements: one stream with real drafts, batches with forced ones, and loads that change."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import SpeculationGauges, Submit
from headrace.evaluation.exactness import mixed_requests
from headrace.evaluation.experiment import Claim, Conditions, Series, interleave
from headrace.evaluation.experiments._smartspec_setup import (
    COPIES,
    TALKS,
    FixedTimes,
    Forced,
    Spell,
    priced,
    tasks,
    together,
    undisturbed,
)
from headrace.evaluation.trials import Bench, Key, Trace, run_all
from headrace.scheduling.settings import SchedulingSettings
from headrace.speculation.proposers import open_proposers

_PLAIN = SchedulingSettings(step_tokens=256, gap_target_ms=60_000, prefix_reuse="off")  # as on a machine that is not busy
_MANY = 16  # streams


def drafts(engine: Engine) -> SpeculationGauges:
    """What an engine that drafts has counted."""
    found = engine.gauges().speculation
    assert found is not None, "the engine drafts"
    return found


def exact(bench: Bench, conditions: Conditions) -> list[Claim]:
    """Requests of every kind, with drafts of which four tokens of five are right, of fixed lengths and adaptive ones."""
    submits = mixed_requests(bench, 7 if conditions.quick else 42, 40 if conditions.quick else 80, conditions.seed)
    alone: dict[Key, Trace] = {}
    for number, submit in enumerate(submits):
        conditions.report("each request alone", number, len(submits))
        alone |= run_all(bench.engine(_PLAIN), [submit])
    answers = {tuple(submits[request].prompt): trace.tokens for (request, _), trace in alone.items()}
    claims = []
    for most in (2, None) if conditions.quick else (1, 2, 4, 8, None):
        conditions.report("with drafts", 0, 1)
        engine = bench.engine(_PLAIN, proposers=[Forced(answers, [0.8] * len(answers), conditions.seed)])
        engine.scheduler.cost = FixedTimes() if most is not None else engine.scheduler.cost
        traces = run_all(engine, [msgspec.structs.replace(submit, speculation=most) for submit in submits])
        same = 100 * sum(traces.get(key) == trace for key, trace in alone.items()) / len(alone)
        counts = drafts(engine)
        note = f"{len(alone)} choices, greedy and sampled; {counts.drafted} drafted tokens verified, {counts.accepted} right"
        name = "adaptive" if most is None else str(most)
        what = f"tokens and logprobs with drafts of {name} as without"
        claims.append(Claim(f"exact_{name}", what, "==", 100, same, "% same bits", note))
    return claims


def single(bench: Bench, conditions: Conditions) -> list[Claim]:
    """One stream at a time, with the real proposers and without any."""
    tokens, rounds = (48, 4) if conditions.quick else (128, 6)
    claims = []
    for texts, asked in ((COPIES, 2.0), (TALKS, 0.99)):
        ratios = []
        for name, submit in tasks(bench, texts, tokens).items():
            conditions.report(f"one stream: {name}", 0, 1)
            variants = [lambda s=submit, d=d: _alone(bench, s, drafted=d) for d in (False, True)]
            off, auto = interleave(variants, rounds)
            ratios.append(undisturbed(auto) / undisturbed(off))
            what = f"speed of one stream with drafts / without: {name}"
            note = f"{auto[0].tokens / auto[0].steps:.2f} tokens a step; {undisturbed(auto):.0f} tokens/s"
            claims.append(Claim(f"single_{name}", what, ">=", asked, ratios[-1], "x", note))
        name, kind = ("copies", "texts that repeat") if texts is COPIES else ("talks", "conversations")
        mean = math.prod(ratios) ** (1 / len(ratios))
        claims.append(Claim(f"single_{name}", f"the same over all {kind}", ">=", asked, mean, "x"))
    return claims


def _alone(bench: Bench, submit: Submit, *, drafted: bool) -> Spell:
    return together(bench.engine(_PLAIN, proposers=open_proposers("auto") if drafted else ()), [submit])


def batch(bench: Bench, streams: int, tokens: int, seed: int) -> list[Submit]:
    """Greedy requests of 48 tokens of text each."""
    rng = random.Random(seed)
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return [Submit(number, bench.prompt(48, rng), params) for number in range(streams)]


def answers_of(bench: Bench, submits: Sequence[Submit]) -> Mapping[tuple[int, ...], Sequence[int]]:
    """What is said without drafts."""
    traces = run_all(bench.engine(_PLAIN), submits)
    return {tuple(submits[request].prompt): trace.tokens for (request, _), trace in traces.items()}


def grid(bench: Bench, conditions: Conditions) -> tuple[list[Claim], list[Series]]:
    """Batches and rates of right tokens: adaptive lengths against none and against the best fixed length."""
    batches = (1, 8) if conditions.quick else (1, 2, 4, 8, 16, 32, 64)
    rates = (0.2, 0.9) if conditions.quick else (0.2, 0.5, 0.7, 0.9)
    to_off: list[float] = []
    to_best: list[float] = []
    for streams in batches:
        submits = batch(bench, streams, 64 // streams + 12, streams)
        answers = answers_of(bench, submits)
        for rate in rates:
            conditions.report(f"{streams} streams, {rate:.0%} right", len(to_off), len(batches) * len(rates))
            off, adaptive, best = _cell(bench, submits, Forced(answers, [rate] * streams, 1), 2)
            to_off.append(adaptive / off)
            to_best.append(adaptive / best)
    note = f"{len(to_off)} cells: {batches[0]} to {batches[-1]} streams; tokens right by force with {rates[0]} to {rates[-1]}"
    claims = [
        Claim("grid_off", "tokens/s, adaptive / never drafting, the worst cell", ">=", 0.97, min(to_off), "x", note),
        Claim(
            "grid_best",
            f"adaptive / the best of fixed 0, 1, 2 and, with fewer than {_MANY} streams, 4 and 8, the worst cell",
            ">=",
            0.95,
            min(to_best),
            "x",
            note,
        ),
        Claim("grid_mean", "the same, geometric mean", ">=", 0.98, math.prod(to_best) ** (1 / len(to_best)), "x", note),
    ]
    series = [
        Series(f"{rate:.0%} right", "streams", "adaptive / off", tuple(map(float, batches)), tuple(to_off[place :: len(rates)]))
        for place, rate in enumerate(rates)
    ]
    return claims, series


def _cell(bench: Bench, submits: Sequence[Submit], forced: Forced, rounds: int) -> tuple[float, float, float]:
    """Tokens a second (without drafts, adaptive, best fixed length). Engines are kept, so that what they learn is.

    Where rows of many streams fill the step already, longer fixed lengths only cost more: they are left out.
    """
    lengths = (None, None, 1, 2, 4, 8) if len(submits) < _MANY else (None, None, 1, 2)
    engines = [bench.engine(_PLAIN)] + [bench.engine(_PLAIN, proposers=[forced]) for _ in lengths[1:]]
    for engine in engines[2:]:
        engine.scheduler.cost = FixedTimes()
    variants = [
        lambda e=engine, k=most: together(e, [msgspec.structs.replace(one, speculation=k) for one in submits])
        for engine, most in zip(engines, lengths, strict=True)
    ]
    variants[1]()  # learns what drafts are worth here
    found = priced(interleave(variants, rounds))
    return found[0], found[1], max(found[0], *found[2:])


def foreseen(bench: Bench, conditions: Conditions) -> list[Claim]:
    """Real drafts in a mixed load: are times and right tokens what was expected?"""
    conditions.report("times and right tokens foreseen", 0, 1)
    engine = bench.engine(_PLAIN, proposers=open_proposers("auto"))
    made = tasks(bench, {**COPIES, **TALKS}, 64 if conditions.quick else 160)
    rounds = 1 if conditions.quick else 3
    coming = [msgspec.structs.replace(one, request_id=number) for number, one in enumerate([*made.values()] * rounds)]
    random.Random(conditions.seed).shuffle(coming)
    foretold: list[float] = []
    right: list[float] = []
    last = engine.gauges()
    while coming or engine.live:
        while coming and engine.live < 2:
            engine.submit(coming.pop())
        engine.step()
        now = engine.gauges()
        if now.steps >= last.steps + 200 or not (coming or engine.live):
            before, after = last.speculation or SpeculationGauges(), drafts(engine)
            emitted = now.generated_tokens - last.generated_tokens
            foretold.append(emitted - (after.accepted - before.accepted) + after.foreseen - before.foreseen)
            right.append(emitted)
            last = now
    errors = engine.scheduler.cost.errors()
    worst = max(abs(a / b - 1) for a, b in zip(foretold, right, strict=True))
    note = f"{errors.count} steps of one and two streams, prompts beside them"
    return [
        Claim("time_median", "error of the foreseen time of a step, median", "<=", 10, 100 * errors.median, "%", note),
        Claim("time_p95", "the same, 95th percentile", "<=", 25, 100 * errors.p95, "%", note),
        Claim(
            "emitted",
            "error of foreseen tokens of 200 steps, the worst",
            "<=",
            5,
            100 * worst,
            "%",
            f"{len(right)} windows, {drafts(engine).accepted} drafted tokens right",
        ),
    ]


def swing(bench: Bench, conditions: Conditions) -> list[Claim]:
    """One stream, then 17, then one again, with tokens right by force in four cases of five."""
    conditions.report("load up and down", 0, 1)
    submits = batch(bench, 17, 24 if conditions.quick else 90, 5)
    answers = answers_of(bench, submits)
    engine = bench.engine(_PLAIN, proposers=[Forced(answers, [0.8] * 17, 2)])
    engine.submit(submits[0])
    shares = [_drafted_a_step(engine, 4)]
    for one in submits[1:]:
        engine.submit(msgspec.structs.replace(one, params=msgspec.structs.replace(one.params, max_tokens=6)))
    _drafted_a_step(engine, 2)  # their prompts
    shares.append(_drafted_a_step(engine, 3))
    while engine.live > 1:
        engine.step()
    steps = 0
    before = drafts(engine).drafted
    while engine.live and drafts(engine).drafted == before and steps < 100:
        engine.step()
        steps += 1
    note = f"{shares[0]:.1f} drafted tokens a step and stream with one stream, {shares[1] / 17:.2f} with 17; right by force: 0.8"
    return [Claim("swing", "steps until drafts are verified again when one stream is left of 17", "<=", 20, steps, "steps", note)]


def _drafted_a_step(engine: Engine, steps: int) -> float:
    before = drafts(engine).drafted
    for _ in range(steps):
        engine.step()
    return (drafts(engine).drafted - before) / steps


def cost(bench: Bench, conditions: Conditions) -> list[Claim]:
    """Drafting that is hopeless: random tokens as prompts, answers by a high temperature."""
    rng = random.Random(conditions.seed)
    vocab = bench.built.model.config.vocab
    params = SamplingParams(max_tokens=24 if conditions.quick else 160, temperature=2.0, seed=3, ignore_eos=True)
    claims = []
    for streams in (1, 6):
        conditions.report(f"hopeless drafts, {streams} streams", 0, 1)
        submits = [Submit(number, [rng.randrange(vocab) for _ in range(64)], params) for number in range(streams)]
        engines = [bench.engine(_PLAIN), bench.engine(_PLAIN, proposers=open_proposers("auto"))]
        variants = [functools.partial(_next_spell, engine, submits, itertools.count()) for engine in engines]
        off, auto = interleave(variants, 6 if conditions.quick else 8)
        counts, gauges = drafts(engines[1]), engines[1].gauges()
        note = f"{counts.drafted} tokens verified in {gauges.steps} steps"
        what = f"tokens/s with hopeless drafts / without any, {streams} streams"
        claims.append(Claim(f"cost_{streams}", what, ">=", 0.995, undisturbed(auto) / undisturbed(off), "x", note))
        share = 100 * counts.seconds / gauges.step_seconds
        claims.append(Claim(f"controller_{streams}", f"time spent on proposing, {streams} streams", "<=", 1.0, share, "% of steps"))
    return claims


def _next_spell(engine: Engine, submits: Sequence[Submit], seeds: Iterator[int]) -> Spell:
    """With the next seed: answers of earlier rounds would be good guesses."""
    seed = next(seeds)
    fresh = [msgspec.structs.replace(one, params=msgspec.structs.replace(one.params, seed=seed)) for one in submits]
    return together(engine, fresh)


def beyond(bench: Bench, conditions: Conditions) -> list[Claim]:
    """Half of four streams are nearly always right and half nearly never: lengths by stream against one length for all."""
    conditions.report("streams that differ", 0, 1)
    submits = batch(bench, 4, 24 if conditions.quick else 80, 9)
    forced = Forced(answers_of(bench, submits), [0.95, 0.1, 0.95, 0.1], 3)
    _, adaptive, best = _cell(bench, submits, forced, 2 if conditions.quick else 4)
    note = "four streams, two right by force with 0.95, two with 0.1"
    return [Claim("beyond", "tokens/s, lengths by stream / the best length for all", ">=", 1.08, adaptive / best, "x", note)]
