"""Random work on the real scheduler with a memory that knows which token each page slot belongs to.

The oracle executes steps on plain lists: copies first, then every row is written, then each slice must find exactly its own
history in its pages. A wrong fork, a page given away too early or a chunk from a wrong position is seen at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES, Budget
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item, ItemKind, ItemState
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.step import Step

PAGE = 16
Cell = tuple[str, int]  # whose token


class World:
    """A scheduler, the memory that its steps write, and what every item must end up with."""

    def __init__(self, seed: int, pages: int, budget: Budget, policy: str = "fcfs") -> None:
        self.random = random.Random(seed)
        self.pool = PagePool(pages, PAGE)
        options = SchedulingSettings(policy=policy, max_waiting=30, max_running=budget.items)
        self.scheduler = Scheduler(options, self.pool, Cost(), POLICIES.get(policy))
        self.scheduler.budget = budget
        self.policy = policy
        self.memory: list[list[Cell]] = [[("nobody", -1)] * PAGE for _ in range(pages)]
        self.tenant = ""
        self.share = ("", 1)
        self.prompts: dict[int, list[int]] = {}
        self.delivered: dict[int, list[int]] = {}
        self.next_id = 0
        self.now = 0.0
        self.steps = 0
        self.finished = 0

    def token(self, item_id: int, position: int) -> int:
        return (item_id * 1_000_003 + position * 7 + 1) % 2**31

    def new_item(self, prompt: list[int], limit: int) -> Item:
        self.next_id += 1
        self.prompts[self.next_id] = prompt
        self.delivered[self.next_id] = []
        deadline = self.now + self.random.uniform(0, 50) if self.random.random() < 0.2 else None
        item = Item(self.next_id, ItemKind.GENERATE, list(prompt), len(prompt), limit, self.now, deadline)
        item.tenant = self.tenant
        item.share, item.weight = self.share
        item.priority = self.random.choice((0, 0, 0, -8, 1, 8))
        return item

    def new_fork(self, leader: Item) -> Item:
        return self.new_item(self.prompts[leader.item_id], leader.max_tokens)

    def add(self) -> None:
        length = self.random.choice((1, 15, 16, 17, 31, 32, 33, self.random.randint(1, 120)))
        prompt = [self.random.randrange(2**31) for _ in range(length)]
        alike = self.random.choice([[], [9] * 120, *self.prompts.values()])  # often a prompt begins like another one
        same = min(self.random.randint(0, 120), length, len(alike))
        prompt[:same] = alike[:same]
        self.tenant = self.random.choice(("", "other"))
        self.share = self.random.choice((("", 1), ("other", 3), ("rare", 1000), (str(self.next_id), 1)))
        leader = self.new_item(prompt, self.random.choice((0, 1, self.random.randint(1, 120), 120)))
        choice = self.random.random()
        if choice < 0.1:
            leader.kind = ItemKind.EMBED
        elif choice < 0.3:
            leader.score_from = self.random.randrange(length)
        try:
            self.scheduler.add(leader)
            if leader.kind is ItemKind.GENERATE and leader.max_tokens > 0:
                for _ in range(self.random.choice((0, 0, 0, 1, 3))):
                    self.scheduler.add_fork(leader, self.new_fork(leader))
        except HeadraceError as refusal:
            if refusal.code not in {"queue_full", "context_length_exceeded"}:
                raise

    def cancel(self) -> None:
        ids = list(self.scheduler._roster.items)
        if ids:
            self.scheduler.cancel(self.random.choice(ids))

    def expire(self) -> None:
        self.now += self.random.uniform(0, 3)
        for item in self.scheduler.expired(self.now):
            assert item.deadline is not None
            assert item.deadline <= self.now
            assert item.state is not ItemState.FINISHED
            self.scheduler.cancel(item.item_id)

    def idle(self) -> None:
        assert self.scheduler.live == 0, "items are live and nothing runs"

    def step(self) -> None:
        step = self.scheduler.plan()
        if step is None:
            self.idle()
            return
        self.steps += 1
        self.check_bounds(step)
        self.execute(step)
        if self.random.random() < 0.05:
            self.cancel()
        sampled: dict[int, int] = {}
        for piece in step.slices:
            item = piece.item
            if piece.completes and item.kind is ItemKind.GENERATE and item.max_tokens > 0:
                for chosen in (item, *item.forks):
                    sampled[chosen.item_id] = self.token(chosen.item_id, piece.end)
        spent = self.scheduler.commit(step, sampled)
        chance = 0.05 if self.steps // 200 % 2 else 0.0  # expected output lengths are wrong every 200 steps: pages run out
        stopped = [p.item for p in step.slices if p.item.state is ItemState.RUNNING and self.random.random() < chance]
        for item in {item.item_id: item for item in (*spent, *(s for s in stopped if s.generated))}.values():
            self.finish(item)

    def finish(self, item: Item) -> None:
        self.scheduler.finish(item)
        self.finished += 1
        prompt = self.prompts[item.item_id]
        expected = [self.token(item.item_id, len(prompt) + i) for i in range(item.generated)]
        assert item.tokens == prompt + expected
        assert item.pages == []
        if item.score_from is not None:
            wanted = [p for p in self.delivered[item.item_id] if p < len(prompt)]
            assert wanted == list(range(item.score_from, len(prompt)))

    def check_bounds(self, step: Step) -> None:
        budget = self.scheduler.budget
        assert 1 <= step.tokens <= (budget.capacity if self.policy == "prompts_whole_first" else budget.tokens)
        assert step.logit_rows <= budget.logit_rows
        assert len(step.slices) <= budget.items
        assert len({piece.item.item_id for piece in step.slices}) == len(step.slices)
        assert not {piece.item.item_id for piece in step.slices} & {item.item_id for item in step.preempted if not item.pages}
        for item, start, count, rows in step.slices:
            assert count >= 1
            assert start == item.computed
            assert start + count <= len(item.tokens)
            assert 0 <= rows <= count
            completes = start + count == len(item.tokens)
            assert rows >= completes or item.kind is ItemKind.EMBED
            assert completes or item.score_from is not None or rows == 0

    def cell(self, item: Item, position: int) -> Cell:
        return item.tenant, item.tokens[position]

    def execute(self, step: Step) -> None:
        for copy in step.copies:
            self.memory[copy.target] = list(self.memory[copy.source])
        for item, start, count, rows in step.slices:
            for position in range(start, start + count):
                self.memory[item.pages[position // PAGE]][position % PAGE] = self.cell(item, position)
            if item.score_from is not None:
                self.delivered[item.item_id] += [p for p in range(start + count - rows, start + count) if p >= item.scored]
        for item, start, count, _ in step.slices:
            end = start + count
            for index in range((end - 1) // PAGE + 1):
                known = [self.cell(item, position) for position in range(index * PAGE, min(end, (index + 1) * PAGE))]
                assert self.memory[item.pages[index]][: len(known)] == known, f"item {item.item_id} lost page {index}"

    def drain(self) -> None:
        for _ in range(20_000):
            if not self.scheduler.live:
                break
            self.step()
            self.scheduler.check_integrity()
        assert self.scheduler.live == 0
        assert self.pool.free == self.pool.total
        assert self.pool.reserved == 0


def run(world: World, operations: int) -> None:
    actions: list[Callable[[], None]] = [world.add, world.step, world.cancel, world.expire]
    for _ in range(operations):
        world.random.choices(actions, weights=(25, 65, 3, 7))[0]()
        world.scheduler.check_integrity()


@pytest.mark.parametrize("policy", POLICIES.names)
def test_ten_thousand_operations_keep_integrity(policy: str) -> None:
    world = World(7, 16, Budget(tokens=64, seconds=None, capacity=200, logit_rows=24, items=12), policy)
    run(world, 10_000)
    world.drain()
    counters = world.scheduler.counters
    assert world.finished > 500
    assert counters.forks > 100
    assert counters.preemptions > 20


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    pages=st.integers(8, 60),
    budget=st.builds(
        Budget,
        tokens=st.integers(16, 200),
        seconds=st.sampled_from((None, 0.001, 0.02)),
        capacity=st.integers(200, 400),
        logit_rows=st.integers(16, 64),
        items=st.integers(1, 40),
    ),
    policy=st.sampled_from(POLICIES.names),
)
def test_any_budget_keeps_integrity_and_finishes(seed: int, pages: int, budget: Budget, policy: str) -> None:
    world = World(seed, pages, budget, policy)
    run(world, 150)
    world.drain()
