"""Places of items: order of arrival, and who is preempted first."""

from __future__ import annotations

import pytest

from headrace.scheduling.item import Item, ItemKind, ItemState
from headrace.scheduling.roster import Roster


def enter(roster: Roster, order: int, computed: int) -> Item:
    """A running item of 10 tokens; a decode when 9 of them are computed."""
    item = Item(order, ItemKind.GENERATE, [1] * 10, 10, 5, order=(order, order), account=roster.shares.enter("", 1))
    roster.items[order] = item
    roster.wait(item)
    assert roster.is_queued(item)
    roster.admit(item)
    item.computed = computed
    roster.caught_up()
    return item


@pytest.mark.parametrize("computed", [(9, 4, 9), (9, 9, 4), (4, 9, 9), (4, 4, 4), (9, 9, 9)])
def test_the_last_to_arrive_is_preempted_first_whatever_it_does(computed: tuple[int, int, int]) -> None:
    roster = Roster()
    items = [enter(roster, order + 1, done) for order, done in enumerate(computed)]
    for expected in reversed(items):
        assert roster.last_running() is expected
        roster.preempted(expected)
        assert expected.state is ItemState.WAITING
    assert roster.last_running() is None
    assert sorted(roster.waiting, key=lambda item: item.order) == items
    assert roster.waiting.first() is items[0]


def test_lists_keep_the_order_of_arrival() -> None:
    roster = Roster()
    items = [enter(roster, order, 4) for order in (1, 2, 3, 4)]
    for index in (2, 0, 3, 1):
        items[index].computed = 9
        roster.caught_up()
    assert roster.decodes == items
    assert roster.prompts == []
    roster.park(items[1])
    roster.drop(items[1])
    assert roster.decodes == [items[0], *items[2:]]
    assert items[1].state is ItemState.FINISHED
    assert roster.running == 3
