"""Policies over instances: numbers in, choices out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.placement.dispatch import DispatchRule, Newcomer, choose_instance
from headrace.placement.load import Load, freeness, virtual_usage
from headrace.placement.pairing import Pairing, PairingRule
from headrace.placement.roles import read_instances
from headrace.placement.scaling import Scaling, ScalingRule, read_span

LOADS = st.builds(
    Load, st.just(100), st.integers(0, 100), st.integers(0, 20), st.integers(0, 5), st.integers(0, 500), st.integers(0, 500),
    st.integers(0, 3), st.booleans(),
)  # fmt: skip


def test_what_waits_and_what_is_urgent_counts_as_used() -> None:
    assert virtual_usage(Load(100, held=40, running=4)) == 40
    assert virtual_usage(Load(100, held=40, running=4, waiting=2, head=10, queue=30)) == 50
    assert virtual_usage(Load(100, held=40, waiting=2, head=10, queue=30), whole_queue=True) == 70
    assert virtual_usage(Load(100, held=40, waiting=1, head=5000)) == 140, "what never fits counts as one pool"
    assert virtual_usage(Load(100, held=40, urgent=1), 0.25) == 65
    assert freeness(Load(100, held=40, running=4)) == 15
    assert freeness(Load(100, held=90, running=4, waiting=1, head=20)) == -2
    assert freeness(Load(100, leaving=True)) == -math.inf


def test_requests_go_to_the_freest_unless_another_knows_them() -> None:
    loads = {0: Load(100, held=50, running=5), 1: Load(100, held=40, running=4), 2: Load(100, leaving=True)}
    assert choose_instance(loads, Newcomer(4)) == 1
    assert choose_instance(loads, Newcomer(4, known={0: 3})) == 0
    assert choose_instance(loads, Newcomer(4, at_home=frozenset({0}))) == 0
    full = {0: Load(100, held=98, running=9), 1: Load(100, held=40, running=4)}
    assert choose_instance(full, Newcomer(4, known={0: 3}, at_home=frozenset({0}))) == 1
    assert choose_instance({2: Load(100, leaving=True)}, Newcomer(4)) is None
    assert choose_instance({0: Load(10), 1: Load(10)}, Newcomer(1)) == 0
    urgent = {0: Load(100, held=40, running=4, urgent=1), 1: Load(100, held=60, running=4)}
    assert choose_instance(urgent, Newcomer(4), DispatchRule(headroom=0.5)) == 1


def test_the_fullest_gives_to_the_freest_until_it_is_well_above_the_bound() -> None:
    pairing = Pairing(PairingRule(gives=3, stops=6, takes=8))
    loads = {0: Load(100, held=95, running=5), 1: Load(100, held=99, running=2), 2: Load(100, held=10, running=1), 3: Load(100)}
    assert [(pair.source, pair.target) for pair in pairing.round(loads)] == [(1, 3), (0, 2)] or pairing.sources == {0, 1}
    loads[0] = Load(100, held=80, running=5)  # 4 pages each: above the bound, not yet above the one at which it stops
    assert 0 in {pair.source for pair in pairing.round(loads)}
    loads[0] = Load(100, held=60, running=5)
    assert 0 not in {pair.source for pair in pairing.round(loads)}


def test_a_queued_head_makes_a_source_of_its_instance() -> None:
    pairing = Pairing()
    loads = {0: Load(100, held=60, running=4, waiting=1, head=50, queue=50), 1: Load(100, held=20, running=2)}
    assert [(pair.source, pair.target) for pair in pairing.round(loads)] == [(0, 1)]


@given(st.dictionaries(st.integers(0, 8), LOADS, max_size=8))
def test_pairs_are_sane_whatever_the_loads(loads: dict[int, Load]) -> None:
    pairing = Pairing()
    for _ in range(2):
        pairs = pairing.round(loads)
        used = [number for pair in pairs for number in (pair.source, pair.target)]
        assert len(used) == len(set(used))
        for pair in pairs:
            assert 0 < pair.room <= loads[pair.target].pages - loads[pair.target].held
            assert not loads[pair.target].leaving
            assert loads[pair.target].waiting == 0
    choice = choose_instance(loads, Newcomer(3))
    assert (choice is None) == all(load.leaving for load in loads.values())


def test_instances_follow_the_load_with_patience() -> None:
    scaling = Scaling(ScalingRule(low=10, patience=2, calm=2))
    tight = {0: Load(100, held=90, running=5), 1: Load(100, held=95, running=5)}
    idle = {0: Load(1000, running=1), 1: Load(1000), 2: Load(1000)}
    assert [scaling.look(tight) for _ in range(3)] == [0, 1, 0]
    assert [scaling.look(idle) for _ in range(2)] == [0, -1]
    assert scaling.look({0: Load(1000)}) == 0, "one stays"
    assert scaling.victim(idle) == 2
    assert scaling.look({}) == 1
    crowd = {0: Load(10_000, held=100, running=6, waiting=2), 1: Load(10_000, held=100, running=5)}
    assert [scaling.look(crowd) for _ in range(2)] == [0, 1], "pages are left, but not time"
    edge = {0: Load(10_000, running=4), 1: Load(10_000, running=2)}
    assert [scaling.look(edge) for _ in range(4)] == [0] * 4, "one would be crowded at once"


def test_a_span_of_instances() -> None:
    found = read_span(("2..9",))
    assert found is not None
    assert (found.least, found.most) == (2, 9)
    assert read_instances(("1..3",)) == ("all",) * 3
    assert read_span(("3",)) is None
    assert read_span(("prefill", "decode")) is None
    for wrong in ("0..3", "3..3", "4..1", "1..", "..2", "1..65", "a..b", "1..2..3"):
        with pytest.raises(HeadraceError, match=r"1\.\.4"):
            read_instances((wrong,))
