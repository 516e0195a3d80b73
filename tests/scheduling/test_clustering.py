"""Who may pass whom where adapters are dear: never more often than the bound, and only for adapters that cost less."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.memory.page_pool import PagePool
from headrace.scheduling.clustering import RUNS, WINDOW, Clustering
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item, ItemKind, order_of
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings

SIZE = 20  # pages of an adapter: dear at the first guess of Cost


def item(number: int, adapter: int = 0, output: int = 4, share: str = "") -> Item:
    own = ((adapter, 1.0),) if adapter else ()
    return Item(number, ItemKind.GENERATE, [1, 2, 3], 3, output, share=share, order=order_of(number, 0), adapters=own)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), most=st.integers(0, 5))
def test_nobody_is_passed_more_often_than_the_bound(seed: int, most: int) -> None:
    rng = random.Random(seed)
    clustering, line, count = Clustering(most), list[Item](), 0
    places: dict[int, int] = {}
    for _ in range(120):
        if rng.random() < 0.55 or not line:
            count += 1
            line.append(item(count))
        near = line[:WINDOW]
        places = {one.item_id: rng.randrange(3) for one in line}
        chosen = clustering.choose(near, lambda one, places=places: places[one.item_id])  # type: ignore[misc]
        allowed = []
        for one in near:
            allowed.append(one)
            if one.passed >= most:
                break
        least = min(places[one.item_id] for one in allowed)
        assert chosen is next(one for one in allowed if places[one.item_id] == least)
        if places[near[0].item_id] == RUNS or not most:
            assert chosen is near[0]
        if rng.random() < 0.7:
            clustering.note(near, chosen)
            line.remove(chosen)
        assert all(one.passed <= most for one in line)


def run(passing: int, policy: str = "fair", size: int = SIZE, shares: int = 1) -> tuple[float, list[int], list[Item]]:
    """(different adapters a step, order of the first tokens, items) of 48 requests over 8 adapters, 4 at a time."""
    pool = PagePool(400, 16)
    options = SchedulingSettings(policy=policy, max_running=4, adapter_passing=passing, prefix_reuse="off")
    scheduler = Scheduler(options, pool, Cost(), POLICIES.get(policy))
    for number in range(8):
        scheduler.adapters.store.register(str(number), size)
    items = [item(number, 1 + number % 8, share=str(number % shares)) for number in range(48)]
    for one in items:
        scheduler.add(one)
    different, order = [], list[int]()
    while scheduler.live:
        step = scheduler.plan()
        for generation in scheduler.adapters.to_load:
            scheduler.adapter_loaded(generation)
        scheduler.adapters.to_load.clear()
        if step is None:
            continue
        different.append(len({generation for piece in step.slices for generation, _ in piece.item.adapters}))
        sampled = {piece.item.item_id: 7 for piece in step.slices if piece.completes}
        order += [number for number in sampled if items[number].generated == 0]
        for spent in scheduler.commit(step, sampled):
            scheduler.finish(spent)
        scheduler.check_integrity()
    return sum(different) / len(different), order, items


def test_fewer_different_adapters_share_a_step() -> None:
    clustered, _, items = run(passing=16)
    plain, order, _ = run(passing=0)
    assert order == list(range(48))
    assert clustered < 0.7 * plain
    assert 0 < max(one.passed for one in items) <= 16


@pytest.mark.parametrize(("policy", "size"), [("fcfs", SIZE), ("fair", 1)])
def test_first_come_first_served_and_cheap_adapters_keep_the_order(policy: str, size: int) -> None:
    assert run(16, policy, size)[1] == list(range(48))


def test_shares_that_are_behind_are_not_passed() -> None:
    """Clustering chooses among shares that stand equal, so that none gets more than a quantum ahead by it."""
    _, _, items = run(passing=16, shares=3)
    assert {one.account.share for one in items} == {"0", "1", "2"}
    assert max(one.passed for one in items) <= 16
