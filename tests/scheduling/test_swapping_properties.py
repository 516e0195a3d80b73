"""Random work on a scheduler whose items leave for a tier and come back, with a mover that is slow, unordered and fails.

Freed pages are poisoned at once, and a page must hold at the end of a piece what it held at its beginning.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler_properties import PAGE, Cell, World, run

from headrace.memory.lodging import Transfer
from headrace.memory.moves import MoveOptions, Moves
from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES, Budget
from headrace.scheduling.cost import Cost
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.swapping import Swapping

BUDGET = Budget(tokens=64, seconds=None, capacity=200, logit_rows=24, items=12)
POISON: list[Cell] = [("nobody", -7)] * PAGE


class SwapWorld(World):
    """A world with a tier of ``slots`` pages; each piece fails with probability ``faults``."""

    remembers = False

    def __init__(self, seed: int, pages: int, slots: int, *, faults: float = 0.0, reuse: bool = True, policy: str = "fcfs") -> None:
        super().__init__(seed, pages, BUDGET, policy)
        self.pool = PagePool(pages, PAGE)
        self.moves = Moves(self.pool, MoveOptions(slots, run_pages=self.random.choice((1, 2, 8)), reuse=reuse))
        swapping = Swapping(self.moves, Cost(), 1, "swap")
        options = SchedulingSettings(
            policy=policy, max_waiting=30, max_running=BUDGET.items, prefix_reuse="on" if self.remembers else "off"
        )
        self.scheduler = Scheduler(options, self.pool, Cost(), POLICIES.get(policy), swapping)
        self.scheduler.budget = BUDGET
        self.tier = [list(POISON) for _ in range(slots)]
        self.running: list[tuple[Transfer, list[list[Cell]]]] = []
        self.faults = faults
        self.blocked = 0

    def step(self) -> None:
        roster = self.scheduler._roster
        if self.random.random() < 0.1 and (roster.decodes or roster.prompts):
            self.scheduler.preempt(self.random.choice([*roster.decodes, *roster.prompts]))
        self.carry(self.random.randrange(3))
        super().step()
        self.poison()
        for transfer in self.moves.issue(self.random.choice((1, 4, 100))):
            self.running.append((transfer, [list(self.memory[page]) for page in transfer.pages]))

    def idle(self) -> None:
        if self.scheduler.live:
            assert self.moves.busy, "items are live and nothing runs or moves"
            self.blocked += 1

    def carry(self, count: int) -> None:
        for _ in range(min(count, len(self.running))):
            transfer, before = self.running.pop(self.random.randrange(len(self.running)))
            well = self.random.random() >= self.faults
            if well and transfer.writes:
                for offset, (page, slot) in enumerate(zip(transfer.pages, transfer.slots, strict=True)):
                    filled = min(PAGE, transfer.tokens - (transfer.index + offset) * PAGE)
                    assert self.memory[page][:filled] == before[offset][:filled], "a page was written while it was copied"
                    self.tier[slot] = list(self.memory[page])
            elif not transfer.writes:
                for page, slot in zip(transfer.pages, transfer.slots, strict=True):
                    self.memory[page] = list(self.tier[slot]) if well else list(POISON)
            self.scheduler.carried(transfer, well=well)
            self.poison()

    def poison(self) -> None:
        kept = set(self.pool.cached_pages())
        for page in range(self.pool.total):
            if self.pool.references(page) == 0 and page not in kept:
                self.memory[page] = list(POISON)

    def drain(self) -> None:
        super().drain()
        for _ in range(1000):
            for transfer in self.moves.issue(100):
                self.running.append((transfer, [list(self.memory[page]) for page in transfer.pages]))
            self.carry(100)
        assert not self.moves.busy
        self.scheduler.check_integrity()


@pytest.mark.parametrize("faults", [0.0, 0.2])
def test_thousands_of_operations_keep_integrity(faults: float) -> None:
    world = SwapWorld(3, 16, 100, faults=faults)
    run(world, 4000)
    world.drain()
    counters = world.moves.counters
    assert world.finished > 200
    assert counters.left > 100
    assert counters.reused > 5
    assert counters.rescued > 20
    assert counters.rescues > 5
    assert (counters.lost > 0) == (faults > 0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32), pages=st.integers(8, 40), slots=st.integers(1, 80), faults=st.sampled_from((0.0, 0.3, 1.0)),
    reuse=st.booleans(), policy=st.sampled_from(POLICIES.names),
)  # fmt: skip
def test_any_tier_keeps_integrity_and_finishes(seed: int, pages: int, slots: int, faults: float, reuse: bool, policy: str) -> None:
    world = SwapWorld(seed, pages, slots, faults=faults, reuse=reuse, policy=policy)
    run(world, 150)
    world.drain()


class RememberingWorld(SwapWorld):
    """Pages are known by their tokens as well."""

    remembers = True


@pytest.mark.parametrize("faults", [0.0, 0.2])
def test_items_that_leave_and_find_known_pages_keep_integrity(faults: float) -> None:
    world = RememberingWorld(5, 20, 100, faults=faults)
    run(world, 2500)
    world.drain()
    assert world.moves.counters.left > 50
    assert world.scheduler.counters.found > 200
    assert world.scheduler.index is not None
    assert world.scheduler.index.evictions > 20


def test_what_moves_beside_a_step_is_bounded_by_the_mover_s_work() -> None:
    pool = PagePool(4, 16)
    swapping = Swapping(Moves(pool, MoveOptions(4)), Cost(), 1 << 20)
    swapping.rates.write = swapping.rates.read = 1e9
    free = swapping.pages_a_step(0.1)
    assert free == int(2 * 0.1 * 1e9 / 2**20)
    swapping.rates.work = 0.2e-9
    bounded = swapping.pages_a_step(0.1)
    assert 1 <= bounded < free
    assert bounded * 2**20 * swapping.rates.work <= 0.03 * 0.1
    assert swapping.pages_a_step(0.1, beside=False) == free, "nothing runs that could be disturbed"
    short = [swapping.pages_a_step(1e-6) for _ in range(80)]
    assert (max(short), sum(short)) == (1, 10), "something always moves, beside some of the steps"
