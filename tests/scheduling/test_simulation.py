"""Policies tried on a virtual clock: stalls, starvation, the knee, and time as the budget."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.knee import KNEE_STEPS, StepSample, find_knee
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.simulation import Arrival, Trace, percentile, simulate


def machine(base: float, token: float, beyond: float, pair: float = 3e-7) -> Cost:
    """A machine whose step times are known exactly."""
    coefficients = {
        "base": base, "token": token, "token_beyond_3": 0.0,
            "token_beyond_8": beyond, "token_beyond_32": 0.0, "pair": pair, "logit_row": 1e-4,
    }  # fmt: skip
    return Cost.from_dict({"format": 1, "coefficients": coefficients, "observed": 1, "spread": 0.05})


TWO_CORES = (4.5e-3, 1e-4, 3e-4)


def scheduler(pages: int, settings: SchedulingSettings, truth: Cost) -> Scheduler:
    return Scheduler(settings, PagePool(pages, 16), Cost.from_dict(truth.to_dict()), POLICIES.get(settings.policy))


def spread(generator: random.Random, mean: float, least: int = 1) -> int:
    return max(least, int(generator.gauss(mean, 0.3 * mean)))


def streams_and_prompts(seed: int) -> list[Arrival]:
    """16 running streams, and prompts of about 280 tokens that arrive at random: about 70 % load."""
    generator = random.Random(seed)
    arrivals = [Arrival(0.0, spread(generator, 64), 800) for _ in range(16)]
    now = 1.0
    while now < 25.0:
        now += generator.expovariate(4.0)
        arrivals.append(Arrival(now, spread(generator, 280, 16), 2))
    return arrivals


def test_split_prompts_remove_stalls() -> None:
    """8 clients in a closed loop, prompt to output 20 : 1; nearly each stream meets the prompts of the other seven."""
    generator = random.Random(3)
    arrivals = [Arrival(0.0, spread(generator, 1200, 16), spread(generator, 60, 2)) for _ in range(96)]
    truth = machine(*TWO_CORES)
    traces: dict[str, Trace] = {}
    for policy in POLICIES.names:
        engine = scheduler(8000, SchedulingSettings(policy=policy, step_tokens=128), truth)
        traces[policy] = simulate(engine, arrivals, truth, clients=8)
    split, whole = traces["fcfs"], traces["prompts_whole_first"]
    assert split.finished == whole.finished == 96
    assert percentile(whole.gaps(), 95) / percentile(split.gaps(), 95) >= 3.7
    assert percentile(split.gaps(), 95) / percentile(split.gaps(), 50) <= 1.5
    assert split.throughput >= 0.97 * whole.throughput


def test_gap_target_holds_under_random_arrivals() -> None:
    truth = machine(*TWO_CORES)
    traces: dict[str, Trace] = {}
    for policy in POLICIES.names:
        options = SchedulingSettings(policy=policy, step_tokens=128, gap_target_ms=30)
        traces[policy] = simulate(scheduler(8000, options, truth), streams_and_prompts(3), truth)
    split, whole = traces["fcfs"], traces["prompts_whole_first"]
    assert split.finished == whole.finished == len(split.arrivals)
    assert percentile(whole.gaps(), 99) / percentile(split.gaps(), 99) >= 3.7
    assert percentile(split.gaps(), 99) <= 0.0301
    assert split.throughput >= 0.97 * whole.throughput


@pytest.mark.parametrize("limit", [None, 300, 1000])
def test_starved_pool_always_progresses(limit: int | None) -> None:
    generator = random.Random(11)
    arrivals = [Arrival(i * 1e-3, generator.randint(30, 300), generator.randint(30, 300), limit) for i in range(32)]
    working_set = sum(-(-(arrival.prompt + arrival.output) // 16) for arrival in arrivals)
    truth = machine(*TWO_CORES)
    trace = simulate(scheduler(int(0.4 * working_set), SchedulingSettings(), truth), arrivals, truth, check=True)
    assert trace.finished == 32
    assert trace.idle_plans == 0
    assert min(trace.step_tokens) > 0
    assert trace.recomputed <= 0.1 * sum(trace.step_tokens)


def test_starved_pool_with_wrong_expectations_still_ends() -> None:
    """Many short answers teach that max_tokens is never used; then all use it, in a pool that fits two of them."""
    arrivals = [Arrival(0.0, 40, 4, 400) for _ in range(60)] + [Arrival(0.1, 40, 400, 400) for _ in range(20)]
    truth = machine(*TWO_CORES)
    trace = simulate(scheduler(60, SchedulingSettings(), truth), arrivals, truth, check=True)
    assert trace.finished == 80
    assert trace.idle_plans == 0
    assert trace.preemptions > 0


@pytest.mark.parametrize("weights", [TWO_CORES, (9e-3, 1e-4, 2e-4), (2e-3, 6e-4, 0.0)], ids=("4 bit", "8 bit", "compute bound"))
@pytest.mark.parametrize("gap_ms", [None, 40])
def test_knee_is_near_the_best_of_all_sizes(weights: tuple[float, float, float], gap_ms: int | None) -> None:
    truth = machine(*weights)
    generator = random.Random(4)
    samples = [
        StepSample(step.tokens, truth.predict(step.tokens, step.pairs, 1) * generator.uniform(1, 1.05))
        for step in KNEE_STEPS
        for _ in range(3)
    ]
    gap = gap_ms / 1000 if gap_ms is not None else None
    prompts = [Arrival(0.0, spread(generator, 600), 1) for _ in range(60)]
    throughput: dict[int, float] = {}
    for tokens in (*range(16, 257, 16), *range(288, 1025, 64)):
        if gap is not None and truth.predict(tokens, 600 * tokens, 1) > gap:
            continue
        options = SchedulingSettings(step_tokens=tokens, max_logit_rows=256)
        throughput[tokens] = simulate(scheduler(8000, options, truth), prompts, truth).throughput
    chosen = find_knee(samples, gap)
    near = min(throughput, key=lambda tokens: abs(tokens - chosen.tokens))
    assert throughput[near] >= 0.95 * max(throughput.values())
    assert gap is None or chosen.seconds <= gap * 1.001


def test_time_budget_beats_a_static_one_over_mixed_contexts() -> None:
    """Each tenth prompt is long. A static size must be set for it, the time budget adapts (base cost of 45 tokens here)."""
    truth = machine(9e-3, 1e-4, 1e-4, pair=1e-7)
    generator = random.Random(9)
    arrivals = [
        Arrival(0.0, spread(generator, 3600) if generator.random() < 0.1 else spread(generator, 250, 16), spread(generator, 30, 2))
        for _ in range(120)
    ]
    gap = 0.03
    fitting: list[float] = []
    for tokens in range(16, 129, 8):
        engine = scheduler(8000, SchedulingSettings(step_tokens=tokens), truth)
        trace = simulate(engine, arrivals, truth, clients=6)
        if percentile(trace.gaps(), 99) <= gap:
            fitting.append(trace.throughput)
    engine = scheduler(8000, SchedulingSettings(step_tokens=256, gap_target_ms=30), truth)
    timed = simulate(engine, arrivals, truth, clients=6)
    assert sum(value > gap * 1.0001 for value in timed.gaps()) < 0.01 * len(timed.gaps())
    assert timed.throughput >= 1.1 * max(fitting)


def test_more_streams_than_budget_take_turns() -> None:
    truth = machine(*TWO_CORES)
    arrivals = [Arrival(0.0, 16, 50) for _ in range(64)] + [Arrival(0.5, 100, 5)]
    engine = scheduler(2000, SchedulingSettings(step_tokens=16), truth)
    trace = simulate(engine, arrivals, truth, check=True)
    assert trace.finished == 65
    turn = 64 / 12  # a quarter of the rows is kept for the prompt
    assert trace.gaps()[-1] <= 2 * turn * max(trace.step_seconds)
    assert trace.token_times[64][0] < max(times[-1] for times in trace.token_times[:64])


def test_times_follow_the_clock() -> None:
    truth = machine(*TWO_CORES)
    trace = simulate(scheduler(100, SchedulingSettings(), truth), [Arrival(5.0, 10, 3), Arrival(1.0, 10, 2)], truth)
    assert trace.token_times[1][0] == pytest.approx(1.0 + truth.predict(10, 55, 1))
    assert trace.token_times[0][0] == pytest.approx(5.0 + truth.predict(10, 55, 1))
    assert trace.first_token_seconds()[0] == pytest.approx(truth.predict(10, 55, 1))
    assert [len(times) for times in trace.token_times] == [3, 2]


def test_same_arrivals_give_the_same_trace() -> None:
    truth = machine(*TWO_CORES)
    arrivals = [replace(arrival, output=min(arrival.output, 40)) for arrival in streams_and_prompts(5)]
    first, second = (simulate(scheduler(400, SchedulingSettings(), truth), arrivals, truth) for _ in range(2))
    assert first == second


def test_percentile() -> None:
    assert percentile([], 50) == 0.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 100) == 4.0
