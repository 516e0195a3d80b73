"""Dispatch policies, searches and attainment over simulated instances."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_simulated_instance import model, requests

from headrace.placement.dispatch import Newcomer
from headrace.placement.load import Load
from headrace.planning.cluster import Outcome, Served, simulate_cluster
from headrace.planning.dispatch import DISPATCHERS, Least
from headrace.planning.instance import Progress
from headrace.planning.search import Layout, Sample, goodput, search
from headrace.planning.targets import Targets, attainment, interval, tail
from headrace.planning.workload import Lengths, Traffic
from headrace.scheduling.simulation import Arrival

TRAFFIC = Traffic(Lengths("lognormal", 80, 0.6), Lengths("lognormal", 40, 0.5), longest=2048)
TARGETS = Targets(ttft=0.5, tpot=0.03)


@pytest.mark.parametrize("dispatch", DISPATCHERS.names)
def test_every_request_is_served_once(dispatch: str) -> None:
    arrivals = requests(200, 20.0, 3)
    outcome = simulate_cluster([model()] * 5, DISPATCHERS.get(dispatch)(5), arrivals)
    assert [served.output for served in outcome.served] == [arrival.output for arrival in arrivals]
    assert all(served.progress.count == served.output and served.ttft > 0 for served in outcome.served)
    assert {served.instance for served in outcome.served} == set(range(5))


def test_freest_beats_round_robin_for_mixed_lengths() -> None:
    traffic = Traffic(Lengths("lognormal", 100, 1.2), Lengths("lognormal", 60, 1.0), longest=4000)
    worst = {}
    for dispatch in ("freest", "round_robin"):
        arrivals = traffic.arrivals(9.0, 1500, 5)
        outcome = simulate_cluster([model(pages=1000)] * 4, DISPATCHERS.get(dispatch)(4), arrivals)
        worst[dispatch] = tail([served.ttft for served in outcome.served], 99)
    assert worst["freest"] < worst["round_robin"]


def test_one_that_fits_nowhere_harms_nobody() -> None:
    arrivals = [Arrival(0.0, 10, 5), Arrival(0.1, 100_000, 5), Arrival(0.2, 10, 5)]
    outcome = simulate_cluster([model()], DISPATCHERS.get("freest")(1), arrivals)
    assert outcome.refused == 1
    assert len(outcome.served) == 2
    assert attainment(outcome, Targets(10.0, 10.0)) == pytest.approx(2 / 3)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=200))
def test_least_is_the_least(changes: list[tuple[int, int]]) -> None:
    least = Least(6, lambda load: load.running)
    now = [0] * 6
    for instance, live in changes:
        now[instance] = live
        least.note(instance, Load(1, running=live))
        assert now[least.choose(Newcomer(1))] == min(now)


def test_both_promises_must_be_kept_by_the_same_request() -> None:
    def served(ttft: float, tpot: float) -> Served:
        return Served(0.0, 11, 0, Progress(11, ttft, ttft + 10 * tpot, 11))

    outcome = Outcome([served(0.1, 0.1), served(0.9, 0.01), served(0.1, 0.01), served(math.nan, math.nan)])
    assert attainment(outcome, TARGETS) == 0.25


def test_goodput_is_the_edge() -> None:
    layout = Layout("one", (model(pages=1000),), 2)
    sample = Sample(TRAFFIC, 300)
    found = goodput(layout, sample, TARGETS, 1.0)
    kept = [share >= TARGETS.share for _, share in found.tried]
    assert found.goodput > 0
    assert kept == sorted(kept, reverse=True)
    assert found.at(found.goodput) >= TARGETS.share
    assert min(rate for rate, share in found.tried if share < TARGETS.share) <= 1.04 * found.goodput


def test_more_instances_keep_more_and_are_named_first() -> None:
    one, two = Layout("one", (model(),), 1), Layout("two", (model(),) * 2, 1)
    plans = search([one, two], Sample(TRAFFIC, 200), TARGETS, 1.0, lambda *_: None)
    assert [plan.layout.name for plan in plans] == ["two", "one"]
    assert plans[0].goodput > 1.6 * plans[1].goodput


def test_what_nothing_can_keep_is_zero() -> None:
    assert goodput(Layout("one", (model(),), 1), Sample(TRAFFIC, 100), Targets(1e-6, 1e-6), 1.0).goodput == 0


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_the_interval_holds_the_share(share: float, count: int) -> None:
    low, high = interval(share, count)
    assert -1e-9 <= low - 1e-9 <= share <= high + 1e-9
