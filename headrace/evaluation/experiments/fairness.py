"""Fair shares: a tenant that asks for little beside one that asks for ten times as much, against first come first served."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from functools import partial

import msgspec

from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.evaluation.exactness import greedy_requests
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, interleave
from headrace.evaluation.experiments import _fairness_runs as runs
from headrace.evaluation.experiments._fairness_runs import HEAVY, LIGHT, BurstRun, ClockLoad, ClockRun, Requests
from headrace.evaluation.live_runs import Planned
from headrace.evaluation.statistics import median_ratio
from headrace.evaluation.trials import Bench, run_all
from headrace.evaluation.workload import Lengths
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.shares import OUTPUT_COST, QUANTUM

_RUNNING = 8  # requests of the burst that run at a time
_BURST_OUTPUT = 16


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How much is measured."""

    light: int
    rounds: int
    burst: int
    burst_rounds: int


_FULL = _Sizes(light=14, rounds=2, burst=60, burst_rounds=4)
_QUICK = _Sizes(light=5, rounds=1, burst=20, burst_rounds=3)


def run(conditions: Conditions) -> Findings:
    """All measurements on one loaded model."""
    sizes = _QUICK if conditions.quick else _FULL
    with Bench(conditions) as bench:
        claims = [*_exact(bench, conditions), *_backlog(bench, conditions, sizes), *_beside(bench, conditions, sizes)]
    return Findings(tuple(claims))


def _engine(bench: Bench, policy: str, running: int = 256) -> Engine:
    return bench.engine(SchedulingSettings(policy=policy, max_running=running))


def _exact(bench: Bench, conditions: Conditions) -> list[Claim]:
    """Three shares of different weights and priorities on a third of the pages, against first come first served on plenty."""
    conditions.report("exactness", 0, 2)
    count, output = (9, 48) if conditions.quick else (24, 96)
    rng = random.Random(conditions.seed)
    submits = greedy_requests(bench, [rng.randrange(20, 160) for _ in range(count)], (output,), conditions.seed)
    plain = run_all(_engine(bench, "fcfs"), submits)
    conditions.report("exactness", 1, 2)
    shared = tuple(
        msgspec.structs.replace(one, share=f"share {n % 3}", weight=1 + n % 3, priority=n % 5 - 2) for n, one in enumerate(submits)
    )
    page = bench.built.chain.page_layout.tokens
    pages = sum(-(-(len(one.prompt) + output) // page) for one in submits) // 3
    engine = bench.engine(SchedulingSettings(policy="fair"), pages)
    ended = SamplingParams(max_tokens=100, logit_bias={bench.built.model.config.eos_ids[0]: 100.0})
    run_all(engine, [Submit(1_000_000 + n, submits[0].prompt[:8], ended) for n in range(8)])  # short answers are then expected
    found = run_all(engine, shared)
    same = sum(found.get(key) == trace for key, trace in plain.items())
    what = "tokens and logprobs under fair shares and priorities on a third of the pages, as first come first served on plenty"
    return [Claim("exact", what, "==", 100, 100 * same / len(plain), "% same bits", f"{engine.gauges().preemptions} preemptions")]


def _backlog(bench: Bench, conditions: Conditions, sizes: _Sizes) -> list[Claim]:
    """Everything waits at once, the heavy tenant's requests first."""
    longest = 200
    requests = Requests(
        bench, Lengths("uniform", 60, longest), Lengths("fixed", _BURST_OUTPUT), random.Random(conditions.seed + 1)
    )  # fmt: skip
    planned = [*requests.several(HEAVY, sizes.burst), *requests.several(LIGHT, sizes.burst)]
    variants = [partial(_burst, bench, policy, planned) for policy in ("fair", "fcfs")]
    report = partial(conditions.report, "both wait")
    runs.burst(_engine(bench, "fair", _RUNNING), planned[:_RUNNING])  # warms caches and the cost model's memory
    fair, first_come = interleave(variants, sizes.burst_rounds, report)
    step = _engine(bench, "fair").scheduler.budget.tokens
    bound = 2 * (max(longest, OUTPUT_COST * _BURST_OUTPUT * _RUNNING) + 2 * QUANTUM + step)
    apart, unfair = (max(one.apart for one in side) for side in (fair, first_come))
    note = f"2 (max(longest prompt {longest}, 2 x {_BURST_OUTPUT} x {_RUNNING} running) + 2 quanta of {QUANTUM} + a step of {step})"
    what = "difference of what two waiting tenants paid for, at most in any stretch"
    rate, other = ([one.rate for one in side] for side in (fair, first_come))
    rates = f"{statistics.median(rate):.0f} and {statistics.median(other):.0f}; {fair[0].preemptions} preemptions"
    return [
        Claim("bound", what, "<=", bound, apart, "tokens", note),
        Claim("unfair", "the same, first come first served / fair", ">=", 1.5, unfair / apart, "x", f"{unfair:.0f} tokens"),
        Claim("throughput", "tokens/s, fair / first come first served", ">=", 0.97, median_ratio(rate, other), "x", rates),
    ]


def _beside(bench: Bench, conditions: Conditions, sizes: _Sizes) -> list[Claim]:
    """Requests by the clock, three times what the machine can do: the light tenant alone, and beside the heavy one."""
    requests = Requests(bench, Lengths("normal", 560, 0.2), Lengths("fixed", 12), random.Random(conditions.seed + 2))
    probe = runs.burst(_engine(bench, "fair"), requests.several(HEAVY, 6))
    load = requests.by_the_clock(sizes.light, probe.seconds / 6)
    sides = (("fair", load.light), ("fair", load), ("fcfs", load))
    variants = [partial(_by_the_clock, bench, policy, which) for policy, which in sides]
    alone, fair, first_come = interleave(variants, sizes.rounds, partial(conditions.report, "a light and a heavy tenant"))
    own = statistics.median(one.p95 for one in alone)
    beside, behind = (statistics.median(one.p95 for one in side) for side in (fair, first_come))
    note = f"{1e3 * beside:.0f} and {1e3 * own:.0f} ms, {sizes.light} requests of {len(load.planned)}"
    stuck = f"{1e3 * behind:.0f} ms, {first_come[0].unanswered} unanswered at the end"
    return [
        Claim("first_token", "p95 of the light tenant's time to the first token, beside the heavy one / alone", "<=", 1.5,
              beside / own, "x", note),
        Claim("first_come", "the same under first come first served", ">=", 3.0, behind / own, "x", stuck),
        Claim("overloaded", "tokens/s under three times the load, fair / first come first served", ">=", 0.97,
              median_ratio([one.rate for one in fair], [one.rate for one in first_come]), "x",
              f"{fair[0].rate:.0f} and {first_come[0].rate:.0f}; preemptions {fair[0].preemptions}"),
    ]  # fmt: skip


def _burst(bench: Bench, policy: str, planned: list[Planned]) -> BurstRun:
    return runs.burst(_engine(bench, policy, _RUNNING), planned)


def _by_the_clock(bench: Bench, policy: str, load: ClockLoad) -> ClockRun:
    return runs.by_the_clock(_engine(bench, policy), load)


EXPERIMENT = Experiment(
    name="fairness",
    title="A tenant that asks for little hardly notices one that asks for ten times as much.",
    source="Fairness in Serving Large Language Models",
    minutes=5,
    run=run,
)
