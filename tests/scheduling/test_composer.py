"""How a step is filled: exactly to the budget, evenly, in order, within time and logit rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES, Budget
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item, ItemKind
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.step import Step

WIDE = Budget(tokens=128, seconds=None, capacity=2048, logit_rows=256, items=256)


def make(budget: Budget = WIDE, policy: str = "fcfs") -> Scheduler:
    scheduler = Scheduler(SchedulingSettings(policy=policy), PagePool(4000, 16), Cost(), POLICIES.get(policy))
    scheduler.budget = budget
    return scheduler


def prompts(scheduler: Scheduler, *lengths: int, limit: int = 50) -> list[Item]:
    first = scheduler.live + 1
    items = [Item(first + i, ItemKind.GENERATE, [first + i] * length, length, limit) for i, length in enumerate(lengths)]
    for item in items:
        scheduler.add(item)
    return items


def advance(scheduler: Scheduler) -> Step:
    step = scheduler.plan()
    assert step is not None
    scheduler.commit(step, {piece.item.item_id: 1 for piece in step.slices if piece.completes})
    return step


def counts(step: Step) -> list[int]:
    return [piece.count for piece in step.slices]


def streams(scheduler: Scheduler, number: int) -> None:
    """``number`` items that decode."""
    prompts(scheduler, *[1] * number, limit=1000)
    advance(scheduler)


def test_a_long_prompt_is_split_evenly() -> None:
    scheduler = make()
    (item,) = prompts(scheduler, 260)
    assert [advance(scheduler).tokens for _ in range(3)] == [96, 96, 68]
    assert item.generated == 1


def test_streams_come_first_and_prompts_fill_the_rest() -> None:
    scheduler = make()
    streams(scheduler, 20)
    prompts(scheduler, 700, 400)
    step = advance(scheduler)
    assert counts(step)[:20] == [1] * 20
    assert 128 - 16 < step.tokens <= 128


def test_short_prompts_are_cut_to_fill_the_step_exactly() -> None:
    scheduler = make()
    prompts(scheduler, *[50] * 30)
    steps = [advance(scheduler) for _ in range(6)]
    assert {step.tokens for step in steps} == {128}


def test_chunks_end_with_pages_where_that_costs_little() -> None:
    scheduler = make()
    streams(scheduler, 12)
    prompts(scheduler, 1000)
    assert advance(scheduler).slices[-1].end == 112
    dear = make()
    streams(dear, 3)
    prompts(dear, 1000)
    assert advance(dear).tokens == 128


def test_order_of_arrival_is_kept() -> None:
    scheduler = make()
    items = prompts(scheduler, 300, 10, 300, 10)
    firsts: list[Item] = []
    while len(firsts) < 4:
        firsts += [piece.item for piece in advance(scheduler).slices if piece.item.generated == 1]
    assert firsts == items


def test_time_bounds_the_prompt_while_streams_wait_and_only_then() -> None:
    timed = replace(WIDE, seconds=0.03)
    alone = make(timed)
    prompts(alone, 512)
    assert advance(alone).tokens == 128
    scheduler = make(timed)
    streams(scheduler, 4)
    prompts(scheduler, 512)
    step = advance(scheduler)
    assert 16 < step.tokens < 128
    assert step.predicted <= 0.03
    assert scheduler.cost.predict(step.tokens + 17, step.attention_work + 17 * 64, step.logit_rows) > 0.03


def test_a_prompt_goes_on_even_when_the_streams_take_all_the_time() -> None:
    scheduler = make(replace(WIDE, seconds=0.001))
    streams(scheduler, 4)
    (item,) = prompts(scheduler, 64)
    assert counts(advance(scheduler)) == [1, 1, 1, 1, 4]
    for _ in range(15):
        advance(scheduler)
    assert item.generated == 1
    crowd = make(replace(WIDE, seconds=0.001))
    streams(crowd, 48)
    prompts(crowd, 64)
    assert counts(advance(crowd)) == [1] * 48 + [12]


def test_wanted_logit_rows_are_delivered_in_bounded_steps() -> None:
    scheduler = make(replace(WIDE, logit_rows=40))
    item = Item(1, ItemKind.GENERATE, [1] * 130, 130, 5, score_from=30)
    scheduler.add(item)
    delivered: list[int] = []
    while item.generated == 0:
        step = advance(scheduler)
        (piece,) = step.slices
        assert step.logit_rows <= 40
        delivered += range(piece.end - piece.logit_rows, piece.end)
    assert delivered == list(range(30, 130))


def test_prompt_ends_need_a_logit_row() -> None:
    scheduler = make(replace(WIDE, logit_rows=16))
    items = prompts(scheduler, *[4] * 20)
    step = advance(scheduler)
    assert step.logit_rows == 16
    assert [item.generated for item in items] == [1] * 16 + [0] * 4
    while any(item.generated == 0 for item in items):
        advance(scheduler)


@pytest.mark.parametrize("lengths", [(500,), (500, 300), (100, 900, 40)])
def test_whole_prompts_first_lets_streams_wait(lengths: tuple[int, ...]) -> None:
    scheduler = make(policy="prompts_whole_first")
    streams(scheduler, 5)
    prompts(scheduler, *lengths)
    assert counts(advance(scheduler)) == list(lengths)
    assert counts(advance(scheduler)) == [1] * (5 + len(lengths))


def test_whole_prompts_beyond_the_buffers_are_cut() -> None:
    scheduler = make(replace(WIDE, capacity=1024), policy="prompts_whole_first")
    prompts(scheduler, 2100)
    assert [advance(scheduler).tokens for _ in range(3)] == [1024, 1024, 52]


def test_the_forecast_is_that_of_cost() -> None:
    scheduler = make()
    prompts(scheduler, 70, 30)
    step = advance(scheduler)
    assert step.predicted == scheduler.cost.predict(step.tokens, step.attention_work, step.logit_rows)


def test_a_machine_that_is_slow_as_a_whole_still_reads_prompts_in_steps_of_the_same_rows() -> None:
    """Else each step would hold a few rows of prompt, and a busy machine would spend its time on reading weights."""

    def rows(slower: float, *, paced: bool) -> int:
        scheduler = make(Budget(64, 0.03, 2048, 256, 256, paced))
        for speed in (1.0, slower):
            for _ in range(300):
                scheduler.cost.observe(8, 800, 8, speed * 4e-3)
                scheduler.cost.observe(64, 2080, 4, speed * 24e-3)
        streams(scheduler, 2)
        prompts(scheduler, 1000)
        return counts(advance(scheduler))[-1]

    usual = rows(1.0, paced=True)
    assert usual >= 48
    assert rows(4.0, paced=True) == pytest.approx(usual, abs=16)
    assert rows(4.0, paced=False) < usual / 3
