"""The scheduler's promises one by one: borders, sampling, forks, cancel, deadlines, refusals, speed."""

from __future__ import annotations

import gc
import time

import pytest

from headrace.errors import HeadraceError
from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item, ItemKind, ItemState
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.step import Step


def make(pages: int = 200, **options: int | str) -> Scheduler:
    settings = SchedulingSettings(**{"step_tokens": 64, **options})  # type: ignore[arg-type]
    return Scheduler(settings, PagePool(pages, 16), Cost(), POLICIES.get(settings.policy))


def item(number: int, prompt: int, limit: int = 10, deadline: float | None = None) -> Item:
    return Item(number, ItemKind.GENERATE, [1000 * number + i for i in range(prompt)], prompt, limit, deadline=deadline)


def sampled(step: Step) -> dict[int, int]:
    """A token for every slice that completes, and for the forks that wait for it."""
    return {one.item_id: 7 for piece in step.slices if piece.completes for one in (piece.item, *piece.item.forks)}


def advance(scheduler: Scheduler) -> Step:
    step = scheduler.plan()
    assert step is not None
    for spent in scheduler.commit(step, sampled(step)):
        scheduler.finish(spent)
    scheduler.check_integrity()
    return step


def run_out(scheduler: Scheduler) -> list[Step]:
    steps = []
    while scheduler.live:
        steps.append(advance(scheduler))
    assert scheduler.pool.free == scheduler.pool.total
    assert scheduler.pool.reserved == 0
    return steps


@pytest.mark.parametrize("budget", [16, 64, 100])
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_prompts_around_multiples_of_the_budget(budget: int, times: int, beyond: int) -> None:
    scheduler = make(step_tokens=budget)
    prompt = times * budget + beyond
    scheduler.add(item(1, prompt, limit=3))
    covered: list[int] = []
    for step in run_out(scheduler):
        (piece,) = step.slices
        covered += range(piece.start, piece.end)
        assert piece.logit_rows == (piece.end >= prompt)
        assert step.tokens <= budget
    assert covered == list(range(prompt + 2))


@pytest.mark.parametrize("prompt", [1, 15, 16, 17, 31, 32, 33, 47, 48, 49])
@pytest.mark.parametrize("limit", [1, 2, 16, 17, 18])
def test_pages_held_are_exactly_those_needed_at_the_end(prompt: int, limit: int) -> None:
    scheduler = make(pages=-(-(prompt + limit - 1) // 16))
    one = item(1, prompt, limit)
    scheduler.add(one)
    while scheduler.live:
        step = scheduler.plan()
        assert step is not None
        spent = scheduler.commit(step, sampled(step))
        scheduler.check_integrity()
        if spent:
            assert spent == [one]
            assert one.generated == limit
            assert len(one.pages) == scheduler.pool.total
            scheduler.finish(one)
    assert one.preemptions == 0


def test_a_token_sampled_from_an_unfinished_chunk_is_refused() -> None:
    scheduler = make()
    scheduler.add(item(1, 100))
    step = scheduler.plan()
    assert step is not None
    assert not step.slices[0].completes
    with pytest.raises(ValueError, match="does not complete"):
        scheduler.commit(step, {1: 7})


def test_cancel_returns_pages_and_reservation_at_once() -> None:
    scheduler = make(pages=20)
    scheduler.add(item(1, 200))
    scheduler.add(item(2, 200))
    step = scheduler.plan()
    assert step is not None
    assert scheduler.pool.reserved > 0
    assert scheduler.pool.held > 0
    assert scheduler.cancel(1) is step.slices[0].item
    assert scheduler.cancel(2) is not None
    assert (scheduler.pool.reserved, scheduler.pool.held) == (0, 0)
    assert scheduler.commit(step, {}) == []
    assert scheduler.cancel(1) is None
    assert scheduler.cancel(99) is None
    assert scheduler.plan() is None
    scheduler.check_integrity()


def test_cancel_of_a_waiting_item_harms_no_neighbour() -> None:
    scheduler = make(pages=20)
    for number in (1, 2, 3):
        scheduler.add(item(number, 200))
    advance(scheduler)
    scheduler.cancel(3)
    first = scheduler.get(1)
    assert first is not None
    assert first.state is ItemState.RUNNING
    run_out(scheduler)
    assert first.generated == 10


def test_forks_compute_the_prompt_once_and_copy_only_the_last_page() -> None:
    scheduler = make(pages=60)
    leader = item(1, 40, limit=20)
    forks = [item(number, 40, limit=20) for number in (2, 3, 4)]
    scheduler.add(leader)
    for fork in forks:
        scheduler.add_fork(leader, fork)
    assert advance(scheduler).tokens == 40
    assert all(fork.computed == 40 and fork.pages == leader.pages and fork.generated == 1 for fork in forks)
    assert scheduler.pool.held == 3
    step = advance(scheduler)
    assert step.tokens == 4
    assert [copy.source for copy in step.copies] == [forks[-1].pages[2]] * 3
    assert scheduler.pool.held == 6
    assert all(fork.pages[:2] == leader.pages[:2] for fork in forks)
    run_out(scheduler)
    assert scheduler.counters.prompt_tokens == 40
    assert all(len(one.tokens) == 60 for one in (leader, *forks))


def test_forks_of_a_prompt_that_ends_with_a_page_copy_nothing() -> None:
    scheduler = make()
    leader, fork = item(1, 32), item(2, 32)
    scheduler.add(leader)
    scheduler.add_fork(leader, fork)
    assert not any(step.copies for step in run_out(scheduler))
    assert fork.generated == leader.generated == 10


@pytest.mark.parametrize("steps", [0, 1])
def test_a_fork_inherits_the_prompt_of_a_cancelled_leader(steps: int) -> None:
    scheduler = make()
    leader, heir, other = item(1, 100), item(2, 100), item(3, 100)
    scheduler.add(leader)
    scheduler.add_fork(leader, heir)
    scheduler.add_fork(leader, other)
    for _ in range(steps):
        advance(scheduler)
    computed = leader.computed
    assert computed > 0 or steps == 0
    scheduler.cancel(1)
    scheduler.check_integrity()
    assert (heir.computed, heir.forks) == (computed, [other])
    run_out(scheduler)
    assert scheduler.counters.prompt_tokens == 100
    assert heir.generated == other.generated == 10


def test_a_late_fork_computes_what_it_does_not_find_of_its_prompt() -> None:
    scheduler = make()
    leader, late = item(1, 20), item(2, 20)
    scheduler.add(leader)
    advance(scheduler)
    late.tokens = leader.tokens
    scheduler.add_fork(leader, late)
    run_out(scheduler)
    assert late.generated == leader.generated == 10
    assert scheduler.counters.prompt_tokens == 20 + 4


@pytest.mark.parametrize("kind", [ItemKind.EMBED, ItemKind.GENERATE])
def test_a_leader_without_output_starts_no_forks(kind: ItemKind) -> None:
    """It would end with its forks still waiting, and leave its place to one that has nothing to compute."""
    scheduler = make()
    leader, fork = Item(1, kind, [1] * 20, 20, 0), item(2, 20)
    scheduler.add(leader)
    scheduler.add_fork(leader, fork)
    step = scheduler.plan()
    assert step is not None
    for spent in scheduler.commit(step, {2: 7}):
        scheduler.finish(spent)
    run_out(scheduler)
    assert (leader.generated, fork.generated) == (0, 10)


def test_a_cancelled_fork_leaves_the_leader_alone() -> None:
    scheduler = make()
    leader, fork = item(1, 20), item(2, 20)
    scheduler.add(leader)
    scheduler.add_fork(leader, fork)
    scheduler.cancel(2)
    scheduler.check_integrity()
    run_out(scheduler)
    assert (leader.generated, fork.generated) == (10, 0)


def test_the_last_to_arrive_is_preempted_and_catches_up() -> None:
    scheduler = make(pages=8)
    old, young = item(1, 40, limit=60), item(2, 40, limit=60)
    scheduler._residency._expected_share = 0.0  # nobody is expected to go on, so both are admitted
    scheduler.add(old)
    scheduler.add(young)
    steps = run_out(scheduler)
    preempted = [one for step in steps for one in step.preempted]
    assert preempted == [young] * young.preemptions
    assert (old.preemptions, young.preemptions) == (0, 1)
    assert scheduler.counters.recomputed == young.recomputed > 0
    assert all(step.tokens > 0 for step in steps)
    assert len(old.tokens) == len(young.tokens) == 100


def test_embeddings_and_scoring_end_without_a_token() -> None:
    scheduler = make()
    embedded = Item(1, ItemKind.EMBED, [1] * 70, 70, 5)
    scored = Item(2, ItemKind.GENERATE, [1] * 70, 70, 0, score_from=10)
    scheduler.add(embedded)
    scheduler.add(scored)
    rows: dict[int, int] = {1: 0, 2: 0}
    spent: list[Item] = []
    while len(spent) < 2:
        step = scheduler.plan()
        assert step is not None
        for piece in step.slices:
            rows[piece.item.item_id] += piece.logit_rows
        spent += scheduler.commit(step, {})
    assert rows == {1: 0, 2: 60}
    assert scheduler.plan() is None
    for one in spent:
        scheduler.finish(one)
    assert scheduler.pool.held == 0


def test_deadlines_are_reported_once() -> None:
    scheduler = make()
    for number, deadline in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0)):
        scheduler.add(item(number, 5, deadline=deadline))
    scheduler.cancel(4)
    assert scheduler.expired(0.5) == []
    assert [one.item_id for one in scheduler.expired(2.5)] == [2]
    assert scheduler.expired(2.5) == []
    assert [one.item_id for one in scheduler.expired(3.0)] == [1]


def test_refusals_name_the_field_and_leave_nothing_behind() -> None:
    scheduler = make(pages=4, max_waiting=2)
    refused = [
        (item(1, 0), "invalid_value", "prompt"),
        (item(2, 60, limit=6), "context_length_exceeded", "max_tokens"),
    ]
    for one, code, param in refused:
        with pytest.raises(HeadraceError) as caught:
            scheduler.add(one)
        assert (caught.value.code, caught.value.param) == (code, param)
    scheduler.add(item(3, 60, limit=5))
    scheduler.add(item(4, 10))
    with pytest.raises(HeadraceError) as caught:
        scheduler.add(item(5, 10))
    assert caught.value.code == "queue_full"
    with pytest.raises(HeadraceError):
        scheduler.add_fork(item(6, 10), item(7, 10))
    assert scheduler.counters.refused == 4
    assert scheduler.live == 2
    run_out(scheduler)


def test_an_id_is_live_once() -> None:
    scheduler = make()
    scheduler.add(item(1, 5))
    with pytest.raises(ValueError, match="live already"):
        scheduler.add(item(1, 5))
    with pytest.raises(ValueError, match="is not live"):
        scheduler.finish(item(1, 5, 1) if scheduler.cancel(1) else item(9, 5))


@pytest.mark.parametrize(("live", "limit_ms"), [(1, 0.02), (64, 0.15), (256, 0.4)])
def test_a_decision_is_cheap(live: int, limit_ms: float) -> None:
    scheduler = make(pages=20_000, step_tokens=512)
    for number in range(live):
        scheduler.add(item(number, 40 + number % 50, limit=1000))
    while any(piece.count > 1 for piece in advance(scheduler).slices):
        pass
    gc.disable()
    best = 1.0
    for _ in range(100):
        began = time.perf_counter()
        step = scheduler.plan()
        planned = time.perf_counter() - began
        assert step is not None
        assert len(step.slices) == live
        tokens = dict.fromkeys((piece.item.item_id for piece in step.slices), 7)
        began = time.perf_counter()
        scheduler.commit(step, tokens)
        best = min(best, planned + time.perf_counter() - began)
    gc.enable()
    assert best * 1000 <= limit_ms
