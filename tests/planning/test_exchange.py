"""Simulated instances that exchange requests, and as many of them as the load wants: nobody is lost and no page is left."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_handing import check
from test_simulated_instance import model, requests

from headrace.placement.dispatch import Newcomer
from headrace.placement.load import Load
from headrace.placement.scaling import ScalingRule
from headrace.planning.cluster import Cluster, Exchange
from headrace.planning.dispatch import DISPATCHERS
from headrace.planning.targets import tail
from headrace.planning.workload import Lengths, Traffic
from headrace.scheduling.simulation import Arrival


def cluster(count: int, pages: int, exchange: Exchange, dispatch: str = "freest") -> Cluster:
    return Cluster([model(pages)] * count, DISPATCHERS.get(dispatch)(count), exchange)


@given(
    seed=st.integers(0, 2**32), rate=st.floats(1.0, 30.0), pages=st.integers(30, 120), dispatch=st.sampled_from(DISPATCHERS.names)
)
@settings(max_examples=15, deadline=None)
def test_everybody_gets_all_tokens_wherever_they_are(seed: int, rate: float, pages: int, dispatch: str) -> None:
    arrivals = requests(40, rate, seed)
    made = cluster(3, pages, Exchange(balanced=True), dispatch)
    check(made, made.run(arrivals, None), arrivals)
    assert sum(instance.scheduler.handover.moved_in for instance in made.instances) == made.crossings.done
    assert not made.crossings.pending


@given(seed=st.integers(0, 2**32), rate=st.floats(1.0, 30.0), moves=st.booleans(), least=st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_nobody_is_lost_when_instances_come_and_go(seed: int, rate: float, *, moves: bool, least: int) -> None:
    arrivals = requests(40, rate, seed)
    made = cluster(4, 100, Exchange(scaling=ScalingRule(least=least, most=4, crowd=2, patience=1), balanced=True, moves=moves))
    check(made, made.run(arrivals, None), arrivals)
    assert made.resizing is not None
    assert least <= sum(state != "gone" for state in made.resizing.states) <= 4


def test_moves_make_room_for_a_long_prompt() -> None:
    arrivals = [*(Arrival(0.001 * at, 190, 120) for at in range(4)), Arrival(0.3, 600, 2)]
    first = {}
    for balanced in (False, True):
        made = cluster(2, 64, Exchange(balanced=balanced))
        outcome = made.run(arrivals, None)
        check(made, outcome, arrivals)
        first[balanced] = outcome.served[-1].ttft
        assert (made.crossings.done > 0) == balanced
    assert first[True] < 0.8 * first[False]


def test_fewer_instances_serve_bursts_and_moves_empty_them_sooner() -> None:
    traffic = Traffic(Lengths("lognormal", 80, 0.6), Lengths("lognormal", 200, 0.9), shape=0.1, longest=2000)
    arrivals = list(traffic.arrivals(4.0, 300, 3))
    spent, first = {}, {}
    for moves in (True, False):
        made = cluster(8, 500, Exchange(scaling=ScalingRule(most=8), moves=moves))
        outcome = made.run(arrivals, None)
        check(made, outcome, arrivals)
        assert made.resizing is not None
        assert made.resizing.begun > 0
        assert (made.crossings.done > 0) == moves
        spent[moves] = made.resizing.spent / made.ended
        first[moves] = tail([one.ttft for one in outcome.served], 50)
    assert spent[True] < spent[False] < 8
    assert first[True] < 2 * first[False]


@pytest.mark.parametrize("dispatch", DISPATCHERS.names)
def test_nothing_goes_where_somebody_leaves(dispatch: str) -> None:
    dispatcher = DISPATCHERS.get(dispatch)(3)
    for number in (0, 2):
        dispatcher.note(number, Load(100, leaving=True))
    dispatcher.note(1, Load(100, held=99, running=9, waiting=9))
    assert {dispatcher.choose(Newcomer(5)) for _ in range(4)} == {1}
