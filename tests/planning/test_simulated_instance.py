"""Stretches of many steps at once against the plain loop that takes every step: the same times, to the last bit but rounding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.planning.cluster import Outcome, simulate_cluster
from headrace.planning.dispatch import DISPATCHERS
from headrace.planning.instance import InstanceModel, SimulatedInstance
from headrace.scheduling.cost import Cost
from headrace.scheduling.simulation import Arrival, Trace, simulate


class Known(Cost):
    """Learns nothing: what the loop by steps would teach it differs in the last bit, which may move a row to another step."""

    __slots__ = ()

    def observe(self, tokens: int, pairs: int, rows: int, seconds: float, adapters: int = 0) -> None:
        """As it was."""


def step_cost() -> Cost:
    terms = {
        "base": 3e-3, "token": 3e-4, "token_beyond_3": 0.0, "token_beyond_8": 2e-4, "token_beyond_32": 1e-4,
        "pair": 3e-7, "logit_row": 2e-4, "adapter_page": 0.0,
    }  # fmt: skip
    return Known.from_dict({"format": 1, "coefficients": terms, "observed": 100, "spread": 0.05})


def model(pages: int = 400, step_tokens: int = 64, policy: str = "fcfs") -> InstanceModel:
    return InstanceModel(step_cost(), pages, step_tokens, 0.05, policy=policy)


def requests(count: int, rate: float, seed: int) -> list[Arrival]:
    rng, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        output = rng.randint(1, 60)
        found.append(Arrival(now, rng.randint(1, 300), output, max_tokens=output + rng.choice((0, 0, 30))))
    return found


def by_steps(what: InstanceModel, arrivals: Sequence[Arrival]) -> Trace:
    return simulate(SimulatedInstance(what).scheduler, arrivals, step_cost())


def by_stretches(what: InstanceModel, arrivals: Sequence[Arrival]) -> Outcome:
    return simulate_cluster([what], DISPATCHERS.get("freest")(1), arrivals)


@pytest.mark.parametrize("policy", ["fcfs", "fair", "priority", "prompts_whole_first"])
@example(seed=175, rate=6.0, pages=173, step_tokens=16)
@example(seed=43559, rate=9.8125, pages=173, step_tokens=256)
@given(
    seed=st.integers(0, 2**32), rate=st.floats(0.3, 12.0), pages=st.integers(30, 400), step_tokens=st.sampled_from((16, 48, 256))
)
@settings(max_examples=12, deadline=None)
def test_the_same_times_as_step_by_step(policy: str, seed: int, rate: float, pages: int, step_tokens: int) -> None:
    arrivals = requests(25, rate, seed)
    trace, outcome = (
        by_steps(model(pages, step_tokens, policy), arrivals),
        by_stretches(model(pages, step_tokens, policy), arrivals),
    )
    assert outcome.refused == 0
    for times, served in zip(trace.token_times, outcome.served, strict=True):
        assert served.progress.count == len(times) == served.output
        assert served.progress.first == pytest.approx(times[0], rel=1e-9)
        assert served.progress.last == pytest.approx(times[-1], rel=1e-9)
        longest = max((b - a for a, b in pairwise(times)), default=0.0)
        assert served.longest_gap == pytest.approx(longest, rel=1e-6, abs=1e-9)


def test_stretches_are_taken() -> None:
    """Otherwise the simulation would be right and slow."""
    arrivals = [Arrival(0.0, 20, 200), Arrival(100.0, 20, 200)]
    assert by_stretches(model(), arrivals).events <= 2 + 3 * 2


def test_integrity_after_stretches() -> None:
    instance = SimulatedInstance(model(pages=60))
    outcome = simulate_cluster([instance.model], DISPATCHERS.get("freest")(1), requests(30, 5.0, 1))
    assert all(served.progress.count == served.output for served in outcome.served)
    fresh = SimulatedInstance(model(pages=60))
    from headrace.planning.instance import Progress
    from headrace.scheduling.item import Item, ItemKind

    following = None
    for number in range(3):
        item = Item(number, ItemKind.GENERATE, [1] * (10 + number), 10 + number, 40)
        at = fresh.add(item, Progress(40), 0.0)
        following = at if at is not None else following
    while following is not None:
        _, now = fresh.end()
        fresh.scheduler.check_integrity()
        following = fresh.begin(now)
    assert fresh.live == 0
    assert fresh.scheduler.pool.held == 0


def test_what_a_step_takes_beside_its_model_is_added_to_each() -> None:
    arrivals = [Arrival(0.0, 20, 40)]
    plain, slower = by_stretches(model(), arrivals), by_stretches(replace(model(), overhead=1e-3), arrivals)
    assert slower.served[0].progress.last - plain.served[0].progress.last == pytest.approx(40e-3)
    assert slower.served[0].longest_gap - plain.served[0].longest_gap == pytest.approx(1e-3)
