"""Adapters as parts of a key's share: equal among each other, and together no more than another key gets."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item, ItemKind
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.shares import Shares


def served(among: str, seed: int) -> Counter[tuple[str, int]]:
    """Tokens by (key, adapter) of a backlog, while all of them wait: one key with three adapters, of which one asks for ten times
    as much, beside a key with one."""
    options = SchedulingSettings(fair_among=among, max_running=4, step_tokens=64, max_waiting=10_000, prefix_reuse="off")
    scheduler = Scheduler(options, PagePool(600, 16), Cost(), POLICIES.get("fair"))
    for number in range(4):
        scheduler.adapters.store.register(str(number), 1)
    users = [("a", 1)] * 10 + [("a", 2), ("a", 3)] + [("b", 4)] * 3
    random.Random(seed).shuffle(users)
    for number in range(users.__len__() * 60):
        key, adapter = users[number % len(users)]
        scheduler.add(Item(number, ItemKind.GENERATE, [1] * 40, 40, 20, share=key, adapters=((adapter, 1.0),)))
    tokens = Counter[tuple[str, int]]()
    while len({item.adapters for item in scheduler.items if item.pages == [] and item.computed == 0}) == 4:
        step = scheduler.plan()
        for generation in scheduler.adapters.to_load:
            scheduler.adapter_loaded(generation)
        scheduler.adapters.to_load.clear()
        if step is None:
            continue
        for piece in step.slices:
            tokens[piece.item.share, piece.item.adapters[0][0]] += piece.count
        for spent in scheduler.commit(step, {piece.item.item_id: 7 for piece in step.slices if piece.completes}):
            scheduler.finish(spent)
    scheduler.check_integrity()
    return tokens


def test_adapters_of_a_key_share_what_the_key_is_due() -> None:
    found = served("adapters", 1)
    mine = [found["a", adapter] for adapter in (1, 2, 3)]
    assert max(mine) <= 1.3 * min(mine)
    assert sum(mine) == pytest.approx(found["b", 4], rel=0.2)
    alike = served("keys", 1)
    assert alike["a", 1] > 4 * alike["a", 2]
    assert sum(alike["a", adapter] for adapter in (1, 2, 3)) == pytest.approx(alike["b", 4], rel=0.2)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_row_costs_as_many_as_there_are_live_parts(seed: int) -> None:
    rng, shares = random.Random(seed), Shares()
    live: list[tuple[str, str, object]] = []
    accounts = {}
    for _ in range(150):
        if rng.random() < 0.55 or not live:
            share, part = rng.choice("xy"), str(rng.randrange(4))
            account = accounts[share, part] = shares.enter(share, 2, part)
            live.append((share, part, account))
        else:
            share, part, _ = live.pop(rng.randrange(len(live)))
            shares.leave(accounts[share, part])
        for share in "xy":
            parts = {part for own, part, _ in live if own == share}
            for part in parts:
                assert accounts[share, part].row_cost == len(parts) / 2
                assert accounts[share, part].token_cost == len(parts)
    assert shares.several == (len({(share, part) for share, part, _ in live}) > 1)
