"""Priorities: who goes first, who is set aside, and that nobody starves."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.memory.moves import MoveOptions, Moves
from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import AGEING, MOST_PRIORITY, Item, ItemKind, ItemState
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.swapping import Swapping


def scheduler_of(pages: int, policy: str = "priority", running: int = 8, *, swap: bool = False) -> Scheduler:
    pool = PagePool(pages, 16)
    swapping = Swapping(Moves(pool, MoveOptions(200)), Cost(), 1, "swap") if swap else None
    options = SchedulingSettings(policy=policy, max_running=running, step_tokens=64)
    return Scheduler(options, pool, Cost(), POLICIES.get(policy), swapping)


def item_of(item_id: int, prompt: int, output: int, priority: int = 0) -> Item:
    return Item(item_id, ItemKind.GENERATE, [item_id] * prompt, prompt, output, priority=priority)


def turn(scheduler: Scheduler) -> set[int]:
    """One step, all moves carried; ids of the items that took part."""
    step = scheduler.plan()
    if scheduler.swapping is not None:
        for transfer in scheduler.swapping.moves.issue(1000):
            scheduler.carried(transfer, well=True)
    scheduler.check_integrity()
    if step is None:
        return set()
    for item in scheduler.commit(step, {piece.item.item_id: 2 for piece in step.slices if piece.completes}):
        scheduler.finish(item)
    return {piece.item.item_id for piece in step.slices}


def test_a_more_important_item_takes_the_place_of_a_running_one() -> None:
    for swap in (False, True):
        scheduler = scheduler_of(8, swap=swap)
        scheduler.add(item_of(1, 60, 60))
        turn(scheduler)
        scheduler.add(item_of(2, 60, 40, priority=1))
        turn(scheduler)
        ran = turn(scheduler) | turn(scheduler)
        assert ran == {2}, "swapped" if swap else "recomputed"
        assert scheduler.counters.preemptions == 1


def test_equal_priorities_never_change_places() -> None:
    scheduler = scheduler_of(8)
    scheduler.add(item_of(1, 60, 60, priority=3))
    turn(scheduler)
    scheduler.add(item_of(2, 60, 60, priority=3))
    while scheduler.live:
        turn(scheduler)
    assert scheduler.counters.preemptions == 0


def test_first_come_first_served_sets_nobody_aside_but_queues_by_priority() -> None:
    scheduler = scheduler_of(8, "fcfs")
    scheduler.add(item_of(1, 60, 60))
    turn(scheduler)
    scheduler.add(item_of(2, 60, 20))
    scheduler.add(item_of(3, 60, 20, priority=5))
    order: list[int] = []
    while scheduler.live:
        order += [item for item in turn(scheduler) if item not in order]
    assert order == [1, 3, 2]
    assert scheduler.counters.preemptions == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), policy=st.sampled_from(("fair", "fcfs", "priority")), swap=st.booleans())
def test_an_item_is_passed_by_a_bounded_number_of_later_ones(seed: int, policy: str, swap: bool) -> None:
    """Whatever priorities come, also changing ones: less than 64·(8 − p) later items ever begin before one of priority p."""
    rng = random.Random(seed)
    scheduler = scheduler_of(6, policy, running=2, swap=swap)
    began: list[int] = []
    lowest: dict[int, int] = {}
    for number in range(120):
        priority = MOST_PRIORITY if number % 40 else rng.randint(-2, 7)
        lowest[number] = priority
        scheduler.add(item_of(number, rng.randint(1, 30), rng.randint(1, 4), priority))
        for _ in range(rng.randrange(3)):
            began += [item for item in sorted(turn(scheduler)) if item not in began]
        waiting = [item for item in scheduler._roster.items.values() if item.state is ItemState.WAITING]
        if waiting and rng.random() < 0.2:
            chosen = rng.choice(waiting)
            new = rng.randint(lowest[chosen.item_id], MOST_PRIORITY)
            scheduler.set_priority(chosen, new)
            scheduler.check_integrity()
    for _ in range(3000):
        if not scheduler.live:
            break
        began += [item for item in sorted(turn(scheduler)) if item not in began]
    assert scheduler.live == 0
    place = {item: index for index, item in enumerate(began)}
    for item, priority in lowest.items():
        passed = sum(place[other] < place[item] for other in range(item + 1, 120))
        assert passed <= AGEING * (MOST_PRIORITY - priority)
