"""The line of waiting items against a list that is sorted anew each time."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.scheduling.item import Item, ItemKind, order_of
from headrace.scheduling.shares import Shares
from headrace.scheduling.waiting import Waiting, claim_on_pages, is_well_behind


def slow_first(items: list[Item]) -> Item | None:
    heads: dict[str, Item] = {}
    for item in sorted(items, key=lambda item: item.order):
        heads.setdefault(item.share, item)
    return min(heads.values(), key=lambda item: (item.account.rank(item.priority), item.order), default=None)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), tenants=st.integers(1, 9))
def test_the_first_is_the_least_whatever_happens(seed: int, tenants: int) -> None:
    rng = random.Random(seed)
    shares = Shares()
    line, inside = Waiting(shares), list[Item]()
    for number in range(1, 400):
        action = rng.random()
        if action < 0.45 or not inside:
            share, priority = str(rng.randrange(tenants)), rng.choice((0, 0, 0, 3, -8))
            item = Item(number, ItemKind.GENERATE, [1], 1, 1, priority=priority, share=share, order=order_of(number, priority))
            item.account = shares.enter(share, 1)
            line.add(item)
            inside.append(item)
        elif action < 0.7:
            item = rng.choice(inside)
            item.account.counter += rng.choice((1, 100, 3000))
        elif action < 0.8:
            item = rng.choice(inside)
            assert line.remove(item)
            item.priority = rng.randint(-8, 8)
            item.order = order_of(item.order[1], item.priority)
            line.add(item)
        else:
            item = line.first() if rng.random() < 0.5 else rng.choice(inside)  # type: ignore[assignment]
            assert line.remove(item)
            assert not line.remove(item)
            assert item not in line
            inside.remove(item)
            shares.leave(item.account)
        assert line.first() is slow_first(inside)
        assert len(line) == len(inside)
        assert {item.item_id for item in line} == {item.item_id for item in inside}
        assert list(reversed(line))[:1] == sorted(inside, key=lambda i: (i.account.rank(i.priority), i.order))[-1:]
        assert len(line._heads) <= 2 * tenants + 17
        assert sum(len(queue.entries) for queue in line._queues.values()) <= 2 * len(inside) + 18 * tenants


def test_only_more_than_a_quantum_between_two_shares_counts() -> None:
    shares = Shares()
    items = [Item(n, ItemKind.GENERATE, [1], 1, 1, account=shares.enter(name, 1), order=(-n, n)) for n, name in enumerate("aab")]
    mine, also_mine, other = items
    other.account.counter = 1023.9
    assert not is_well_behind(mine, other)
    other.account.counter = 1024.0
    assert is_well_behind(mine, other)
    assert not is_well_behind(other, mine)
    other.priority = 1
    assert not is_well_behind(mine, other)
    other.account.counter = 2048.0
    assert is_well_behind(mine, other, 2)
    assert not is_well_behind(mine, other, 3)
    assert claim_on_pages(other) < claim_on_pages(mine), "within four quanta the order counts"
    other.account.counter = 2048.0 + 512
    assert claim_on_pages(other) > claim_on_pages(mine)
    also_mine.priority = 8
    assert not is_well_behind(also_mine, mine)
