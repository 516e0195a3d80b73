"""Hand-offs in simulated time: nobody is lost, pages and times add up, and a full destination presses back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulated_instance import model, requests

from headrace.placement.roles import Role
from headrace.planning.cluster import Cluster, Exchange, Outcome, simulate_cluster
from headrace.planning.dispatch import DISPATCHERS
from headrace.planning.instance import InstanceModel
from headrace.scheduling.simulation import Arrival

PAIR: tuple[Role, ...] = ("prefill", "decode")


def cluster(models: list[InstanceModel], roles: tuple[Role, ...], prompts: int = 1) -> Cluster:
    return Cluster(models, DISPATCHERS.get("freest")(prompts), Exchange(roles))


def check(made: Cluster, outcome: Outcome, arrivals: list[Arrival]) -> None:
    assert [served.progress.count for served in outcome.served] == [arrival.output for arrival in arrivals]
    for served in outcome.served:
        assert served.sent < served.progress.first <= served.progress.last
    for instance in made.instances:
        assert instance.live == 0
        assert instance.scheduler.pool.held == instance.scheduler.pool.reserved == 0
        assert not instance.scheduler.handover.leases
        instance.scheduler.check_integrity()


@given(seed=st.integers(0, 2**32), rate=st.floats(0.5, 20.0), pages=st.integers(30, 200), few=st.integers(30, 200))
@settings(max_examples=15, deadline=None)
def test_everybody_gets_all_tokens_and_no_page_is_left(seed: int, rate: float, pages: int, few: int) -> None:
    arrivals = requests(30, rate, seed)
    made = cluster([model(pages), model(few)], PAIR)
    check(made, made.run(arrivals, None), arrivals)
    assert made.handing is not None
    moved = sum(instance.scheduler.handover.moved_in for instance in made.instances)
    assert moved == made.handing.done == len(made.handing.still)


def test_tokens_are_made_elsewhere() -> None:
    arrivals = [Arrival(float(at), 100, 50) for at in range(4)]
    made = cluster([model(), model(), model()], ("prefill", "decode", "prefill"), 2)
    check(made, made.run(arrivals, None), arrivals)
    assert made.handing is not None
    assert made.handing.done == 4
    generated = [instance.scheduler.counters.generated for instance in made.instances]
    assert generated[1] > 180
    assert made.instances[1].scheduler.counters.prompt_tokens == 0
    assert generated[0]
    assert generated[2]
    assert all(0 < still < 0.02 for still in made.handing.still)


def test_a_long_prompt_stretches_no_step_elsewhere() -> None:
    arrivals = [Arrival(0.0, 50, 60), Arrival(0.1, 3000, 2)]
    apart = simulate_cluster([model(), model()], DISPATCHERS.get("freest")(1), arrivals, exchange=Exchange(PAIR))
    mixed = simulate_cluster([model()], DISPATCHERS.get("freest")(1), arrivals)
    gaps = [outcome.served[0].longest_gap for outcome in (apart, mixed)]
    assert gaps[0] < 0.7 * gaps[1]


def test_a_full_destination_leaves_requests_where_they_are() -> None:
    arrivals = [Arrival(0.01 * at, 60, 100) for at in range(12)]
    made = cluster([model(400), model(16)], PAIR)
    check(made, made.run(arrivals, None), arrivals)
    assert made.handing is not None
    assert made.handing.done < 12, "sixteen pages hold few at a time"
    assert made.instances[0].scheduler.counters.generated > 300


def test_plain_roles_are_no_roles() -> None:
    arrivals = requests(60, 8.0, 4)
    found = []
    for roles in ((), ("all", "all")):
        outcome = simulate_cluster([model(), model()], DISPATCHERS.get("freest")(2), arrivals, exchange=Exchange(roles))
        found.append([(one.progress.first, one.progress.last, one.instance) for one in outcome.served])
    assert found[0] == found[1]


def test_one_that_outgrows_its_place_meanwhile_stays() -> None:
    arrivals = [Arrival(0.0, 2000, 200)]
    made = cluster([replace(model(), page_seconds=5e-3), model()], PAIR)
    check(made, made.run(arrivals, None), arrivals)
    assert made.handing is not None
    assert made.handing.done == 0
    assert made.handing.refused > 0


@pytest.mark.parametrize("seconds", [0.0, 1e-3])
def test_pages_take_their_time(seconds: float) -> None:
    arrivals = [Arrival(0.0, 2000, 200)]
    still = []
    for page_seconds in (seconds, seconds + 2e-4):
        made = cluster([replace(model(), page_seconds=page_seconds), model()], PAIR)
        made.run(arrivals, None)
        assert made.handing is not None
        still += made.handing.still
    assert all(before < after for before, after in pairwise(still))
