"""What the fair policy promises, on the virtual clock: equal service, bounded waiting, and nothing new for a single tenant."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item, ItemKind
from headrace.scheduling.priority_changes import PriorityChange, least_served_first, markov_priorities, random_priorities
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.shares import CREDIT, OUTPUT_COST, QUANTUM
from headrace.scheduling.simulation import Arrival, Changes, Trace, percentile, simulate

TRUTH = Cost.from_dict(
    {
        "format": 1,
        "coefficients": {
            "base": 4.5e-3, "token": 1e-4, "token_beyond_3": 0.0,
            "token_beyond_8": 3e-4, "token_beyond_32": 0.0, "pair": 3e-7, "logit_row": 1e-4,
        },
        "observed": 1,
        "spread": 0.05,
    }
)  # fmt: skip
STEP = 64


def scheduler_of(policy: str, pages: int = 4000, running: int = 8) -> Scheduler:
    options = SchedulingSettings(policy=policy, max_running=running, step_tokens=STEP, max_waiting=100_000)
    return Scheduler(options, PagePool(pages, 16), Cost.from_dict(TRUTH.to_dict()), POLICIES.get(policy))


def random_arrivals(rng: random.Random, shares: Sequence[tuple[str, int]], count: int, most: int = 120) -> list[Arrival]:
    return [
        Arrival(
            rng.uniform(0, 2), rng.randint(1, most), rng.randint(1, 40), rng.choice((None, 60)), *rng.choice(shares),
            priority=rng.choice((0, 0, 0, 0, 2, -3, 8)),
        )
        for _ in range(count)
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), pages=st.sampled_from((12, 30, 1000)), running=st.sampled_from((2, 8, 64)))
def test_one_tenant_gets_the_very_steps_of_first_come_first_served(seed: int, pages: int, running: int) -> None:
    arrivals = random_arrivals(random.Random(seed), [("only", 3)], 40)
    traces = [simulate(scheduler_of(policy, pages, running), arrivals, TRUTH) for policy in ("fair", "fcfs")]
    assert traces[0] == traces[1]
    assert traces[0].finished == 40


def backlog(trace: Trace, prompt: int, output: int, running: int) -> tuple[float, float]:
    """(largest difference of what two shares paid for over any stretch in which both waited, the bound on it)."""
    last = {share: max(t[0] for t, a in zip(trace.token_times, trace.arrivals, strict=True) if a.share == share) for share in "ab"}
    ends, now = 0, 0.0
    for seconds in trace.step_seconds:
        now += seconds
        if now >= min(last.values()):
            break
        ends += 1
    gaps = [paid.get("a", 0) - paid.get("b", 0) for paid in trace.paid[: ends - running]]
    bound = 2 * (max(prompt, OUTPUT_COST * output * running) + 2 * QUANTUM + STEP)
    return max(gaps) - min(gaps), bound


@pytest.mark.parametrize("pages", [4000, 60])
def test_two_backlogged_tenants_are_served_alike_within_the_bound(pages: int) -> None:
    """One sends ten times as much; as long as both wait they get the same, with few pages as with plenty."""
    rng = random.Random(5)
    arrivals = [
        Arrival(0.0, rng.randint(40, 200), rng.randint(20, 40), None, "b" if n % 11 == 0 else "a") for n in range(660)
    ]  # fmt: skip
    fair, first_come = (simulate(scheduler_of(policy, pages), arrivals, TRUTH) for policy in ("fair", "fcfs"))
    assert fair.finished == first_come.finished == 660
    gap, bound = backlog(fair, 200, 40, 8)
    assert gap <= bound
    assert backlog(first_come, 200, 40, 8)[0] > 2 * bound
    assert fair.throughput >= 0.97 * first_come.throughput


def test_weights_are_ratios_of_service() -> None:
    arrivals = [Arrival(0.0, 100, 30, None, "ab"[n % 2], (1, 3)[n % 2]) for n in range(400)]
    trace = simulate(scheduler_of("fair"), arrivals, TRUTH)
    half = trace.paid[len(trace.paid) // 2]
    assert half["b"] / half["a"] == pytest.approx(3.0, rel=0.15)


def test_a_light_tenant_hardly_notices_a_heavy_one() -> None:
    rng = random.Random(2)
    light = [Arrival(1.0 + 1.5 * n, 500, 10, None, "light") for n in range(20)]
    heavy = [Arrival(0.0, rng.randint(200, 400), 30, None, "heavy") for _ in range(300)]
    alone = simulate(scheduler_of("fair"), light, TRUTH).first_token_seconds("light")
    beside = {
        policy: simulate(scheduler_of(policy), [*heavy, *light], TRUTH).first_token_seconds("light") for policy in ("fair", "fcfs")
    }
    assert percentile(beside["fair"], 95) <= 1.5 * percentile(alone, 95)
    assert percentile(beside["fcfs"], 95) > 10 * percentile(alone, 95)


def test_a_tenant_who_is_well_behind_gets_pages_of_one_who_holds_them_all() -> None:
    heavy = [Arrival(0.0, 30, 400, None, "heavy") for _ in range(10)]
    light = [Arrival(1.5, 200, 10, None, "light")]
    fair, first_come = (simulate(scheduler_of(policy, 100), [*heavy, *light], TRUTH, check=True) for policy in ("fair", "fcfs"))
    assert fair.finished == first_come.finished == 11
    assert fair.preemptions > 0
    assert fair.first_token_seconds("light")[0] < 0.2 * first_come.first_token_seconds("light")[0]


@pytest.mark.parametrize("tenants", [2, 8])
def test_long_answers_on_few_pages_are_not_pushed_out_by_turns(tenants: int) -> None:
    """Everybody wants more than there is all the time: fairness costs little of the throughput."""
    rng = random.Random(tenants)
    arrivals = [
        Arrival(rng.uniform(0, 3), rng.randint(20, 300), rng.randint(150, 300), 400, str(int(tenants * rng.random() ** 2)))
        for _ in range(60)
    ]
    fair, first_come = (simulate(scheduler_of(policy, 100, 64), arrivals, TRUTH) for policy in ("fair", "fcfs"))
    assert fair.finished == first_come.finished == 60
    assert fair.throughput >= 0.9 * first_come.throughput
    assert fair.preemptions <= first_come.preemptions + 15


def test_returning_again_and_again_earns_nothing() -> None:
    """A tenant whose queue is empty in between is not served more than one that always waits, beyond the credit."""
    sly = [Arrival(0.35 * n, 150, 2, None, "a") for n in range(100)]
    steady = [Arrival(0.0, 150, 2, None, "b") for _ in range(200)]
    trace = simulate(scheduler_of("fair", running=1), [*sly, *steady], TRUTH)
    assert trace.finished == 300
    both = [paid for paid in trace.paid if paid.get("b", 0) < 150 * 195]
    assert max(paid.get("a", 0) - paid.get("b", 0) for paid in both) <= CREDIT + 3 * QUANTUM


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), tenants=st.integers(2, 6), pages=st.sampled_from((12, 40, 1000)))
def test_the_starvation_bound_holds(seed: int, tenants: int, pages: int) -> None:
    """While a request waits with no other of its share begun or before it, each other share pays for a bounded amount only.

    However many come later and whatever their priorities: the credit, a quantum for each step of priority between them and one
    for what counts as equal, and what runs to its end once it has begun.
    """
    rng = random.Random(seed)
    shares = [(str(n), 1) for n in range(tenants)]
    others = [replace(one, time=0.0) for one in random_arrivals(rng, shares, 70)]
    target = Arrival(0.5, 60, 5, None, "target", priority=rng.choice((-8, 0, 3)))
    trace = simulate(scheduler_of("fair", pages, 4), [*others, target], TRUTH)
    assert trace.finished == 71
    began = trace.token_times[-1][0]
    before, now = dict[str, int](), 0.0
    for seconds, paid in zip(trace.step_seconds, trace.paid, strict=True):
        if now < target.time:
            before = paid
        now += seconds
        if now >= began:
            break
    runs_out = max(120, OUTPUT_COST * 60 * 4)
    for share, _ in shares:
        served = paid.get(share, 0) - before.get(share, 0)
        assert served <= CREDIT + (8 - target.priority + 2) * QUANTUM + runs_out + 2 * STEP


@pytest.mark.parametrize("pattern", [random_priorities, markov_priorities, least_served_first])
@pytest.mark.parametrize("policy", ["fair", "priority"])
def test_changing_priorities_starve_nobody(policy: str, pattern: PriorityChange) -> None:
    arrivals = random_arrivals(random.Random(8), [("a", 1), ("b", 2), ("c", 1)], 60)
    changes = Changes(pattern, 5, 3)
    trace = simulate(scheduler_of(policy, 24), arrivals, TRUTH, changes=changes, check=True)
    assert trace.finished == 60
    assert trace.idle_plans == 0


def test_what_is_found_or_computed_again_is_not_paid_for() -> None:
    scheduler = scheduler_of("fair", 100)
    tokens = list(range(100))
    paid: list[float] = []
    for number in range(2):
        item = scheduler_item(number, tokens)
        scheduler.add(item)
        before = item.account.counter
        for turn in range(50):
            step = scheduler.plan()
            assert step is not None
            done = scheduler.commit(step, {piece.item.item_id: 7 for piece in step.slices if piece.completes})
            if turn == 3:
                assert scheduler.preempt(item)
            for one in done:
                scheduler.finish(one)
            if done:
                break
        paid.append(item.account.counter - before)
    assert paid == [100 + 2 * 20, 4 + 2 * 20]
    assert scheduler.counters.recomputed + scheduler.counters.found > 96


def scheduler_item(number: int, tokens: list[int]) -> Item:
    return Item(number, ItemKind.GENERATE, list(tokens), len(tokens), 20, share="payer", tenant="t")
