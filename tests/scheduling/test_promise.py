"""Who can't have a first token in time is refused, and nobody else: against a machine that is played step by step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item, ItemKind
from headrace.scheduling.promise import Pace, Promise, pace
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings


def item(number: int, rows: int, arrival: float = 0.0, kind: ItemKind = ItemKind.GENERATE, priority: int = 0) -> Item:
    return Item(number, kind, [1] * rows, rows, 4, arrival, priority=priority)


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=25), ahead=st.integers(0, 300), rows=st.integers(1, 40),
    promised=st.integers(0, 30), waited=st.lists(st.integers(0, 20), min_size=25, max_size=25),
)  # fmt: skip
def test_late_is_who_would_begin_late(lengths: list[int], ahead: int, rows: int, promised: int, waited: list[int]) -> None:
    """Steps of one second; a row of an item computed in step k (from 0) begins at k."""
    items = [item(number, length, 100.0 - waited[number]) for number, length in enumerate(lengths)]
    late = Promise(float(promised)).late(items, ahead, 100.0, Pace(rows, 1.0))
    served = [one for one in items if one not in late]
    queue = ["ahead"] * ahead + [str(one.item_id) for one in served for _ in one.tokens]
    for one in served:
        assert queue.index(str(one.item_id)) // rows <= promised - waited[one.item_id]
    for one in late:
        before = ahead + sum(len(other.tokens) for other in served if other.item_id < one.item_id)
        assert before // rows > promised - waited[one.item_id]


def test_nothing_is_promised_to_work_that_has_no_first_token_or_can_wait() -> None:
    began = item(3, 50)
    began.tokens.append(7)
    none = [item(1, 50, kind=ItemKind.EMBED), item(2, 50, priority=-1), began]
    assert Promise(1.0).late([*none, item(4, 5)], 0, 100.0, Pace(16, 0.1)) != []
    assert Promise(1.0).late(none, 0, 100.0, Pace(16, 0.1)) == []


def test_a_long_prompt_alone_is_not_late() -> None:
    assert Promise(0.001).late([item(1, 100_000)], 0, 0.0, Pace(16, 1.0)) == []


def test_the_pace_keeps_the_gap_and_leaves_prompts_some_rows() -> None:
    cost = Cost()
    free = pace(cost, 256, 0, 0.01)
    assert free == Pace(256, cost.predict(256, 0, 0))
    beside = pace(cost, 256, 32, 0.03)
    assert beside.rows < 224
    assert beside.seconds <= 0.03
    assert pace(cost, 256, 300, None).rows == 4


@pytest.mark.parametrize("promised", [None, 500])
def test_the_scheduler_reports_each_late_item_until_it_is_gone(promised: int | None) -> None:
    options = SchedulingSettings(first_token_ms=promised, step_tokens=16, max_running=1, policy="fcfs")
    scheduler = Scheduler(options, PagePool(100, 16), Cost(), POLICIES.get("fcfs"))
    for number in range(3):
        scheduler.add(item(number, 64))
    assert scheduler.late(0.0) == []
    step = scheduler.plan()
    assert step is not None
    scheduler.commit(step, {})
    late = scheduler.late(0.6)
    assert [one.item_id for one in late] == ([1, 2] if promised else [])
    for one in late:
        scheduler.cancel(one.item_id)
    assert scheduler.late(0.7) == []
    scheduler.check_integrity()
