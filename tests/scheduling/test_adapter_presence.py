"""Random work on a scheduler whose items need adapters, with a reader that is slow, unordered and fails.

Adapters lie in the same memory as tokens: a page that is given away too early, or an item that runs without its adapter, shows.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler_properties import PAGE, Cell
from test_swapping_properties import RememberingWorld

from headrace.errors import HeadraceError
from headrace.memory.adapter_store import AdapterState
from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item, ItemKind, ItemState
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.step import Step


class AdapterWorld(RememberingWorld):
    """``adapters`` adapters of 1 to 3 pages; each load fails with probability ``faults``."""

    def __init__(self, seed: int, pages: int, *, adapters: int = 6, faults: float = 0.0, policy: str = "fcfs") -> None:
        super().__init__(seed, pages, 60, faults=0.0, policy=policy)
        self.presence = self.scheduler.adapters
        self.load_faults = faults
        self.reading: list[int] = []
        self.failures = 0
        for index in range(adapters):
            self.presence.store.register(str(index), self.random.randint(1, 3))

    def new_item(self, prompt: list[int], limit: int) -> Item:
        item = super().new_item(prompt, limit)
        live = [record.generation for record in self.presence.store if not record.retired]
        count = self.random.choice((0, 1, 1, 2))
        item.adapters = tuple((one, self.random.choice((1.0, 0.5))) for one in self.random.sample(live, min(count, len(live))))
        return item

    def new_fork(self, leader: Item) -> Item:
        item = super().new_fork(leader)
        item.adapters = leader.adapters
        return item

    def add(self) -> None:
        if self.random.random() < 0.05:
            name = self.random.choice("012345")
            former = self.presence.store.find(name)
            if former is not None:
                self.presence.unkeep(former)
            self.presence.store.register(name, self.random.randint(1, 3))
        if self.random.random() < 0.05:
            self.keep_or_not()
        try:
            super().add()
        except HeadraceError as refusal:
            if "the page pool has" not in refusal.message:
                raise

    def keep_or_not(self) -> None:
        record = self.presence.store.find(self.random.choice("012345"))
        if record is None:
            return
        try:
            if self.presence.is_kept(record.generation):
                self.presence.unkeep(record)
            else:
                self.presence.keep(record, self.scheduler.items)
        except HeadraceError as refusal:
            if refusal.param not in ("pinned", "max_tokens"):
                raise

    def step(self) -> None:
        self.read(self.random.randrange(3))
        super().step()
        self.reading += self.presence.to_load
        self.presence.to_load.clear()

    def idle(self) -> None:
        if self.scheduler.live:
            assert self.moves.busy or self.reading or self.presence.to_load, "items are live and nothing runs, moves or loads"

    def read(self, count: int) -> None:
        for _ in range(min(count, len(self.reading))):
            generation = self.reading.pop(self.random.randrange(len(self.reading)))
            if self.random.random() < self.load_faults:
                self.failures += 1
                for item in self.scheduler.items:
                    if any(own == generation for own, _ in item.adapters):
                        self.scheduler.cancel(item.item_id)
                self.presence.failed(generation)
                continue
            self.write(generation)
            self.scheduler.adapter_loaded(generation)

    def write(self, generation: int) -> None:
        for page in self.presence.store.get(generation).pages:
            self.memory[page] = self.numbers(generation)

    def numbers(self, generation: int) -> list[Cell]:
        return [("adapter", generation)] * PAGE

    def execute(self, step: Step) -> None:
        for item, *_ in step.slices:
            for generation, _ in item.adapters:
                record = self.presence.store.get(generation)
                assert record.state is AdapterState.PINNED, f"item {item.item_id} runs without adapter {generation}"
                assert all(self.memory[page] == self.numbers(generation) for page in record.pages), "an adapter was overwritten"
        super().execute(step)

    def cell(self, item: Item, position: int) -> Cell:
        return (repr(item.root), item.tokens[position])

    def drain(self) -> None:
        for _ in range(20_000):
            if not (self.scheduler.live or self.reading or self.presence.to_load or self.moves.busy):
                break
            self.step()
            self.scheduler.check_integrity()
        assert self.scheduler.live == 0
        store = self.presence.store
        assert self.pool.free == self.pool.total - store.resident_pages
        for record in list(store):
            self.presence.unkeep(record)
        assert store.make_room(self.pool.total)
        assert self.pool.free == self.pool.total
        self.scheduler.check_integrity()


def run_world(world: AdapterWorld, operations: int) -> None:
    for _ in range(operations):
        world.random.choices([world.add, world.step, world.cancel, world.expire], weights=(25, 65, 3, 7))[0]()
        world.scheduler.check_integrity()


@pytest.mark.parametrize("faults", [0.0, 0.1])
def test_thousands_of_operations_keep_integrity(faults: float) -> None:
    world = AdapterWorld(11, 20, faults=faults)
    run_world(world, 3000)
    world.drain()
    assert world.finished > 100
    assert world.presence.loads > 50
    assert world.presence.store.evictions > 20
    assert (world.failures > 0) == (faults > 0)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32), pages=st.integers(10, 50), adapters=st.integers(1, 12), faults=st.sampled_from((0.0, 0.3)),
    policy=st.sampled_from(POLICIES.names),
)  # fmt: skip
def test_any_pool_keeps_integrity_and_finishes(seed: int, pages: int, adapters: int, faults: float, policy: str) -> None:
    world = AdapterWorld(seed, pages, adapters=adapters, faults=faults, policy=policy)
    run_world(world, 150)
    world.drain()


def scheduler_of(pages: int) -> Scheduler:
    return Scheduler(SchedulingSettings(), PagePool(pages, PAGE), Cost(), POLICIES.get("fcfs"))


def item_of(item_id: int, *generations: int, length: int = PAGE, limit: int = 4) -> Item:
    prompt = [item_id] * length
    return Item(item_id, ItemKind.GENERATE, prompt, length, limit, adapters=tuple((one, 1.0) for one in generations))


def test_others_run_while_an_adapter_is_read_and_nobody_is_preempted_for_idle_ones() -> None:
    scheduler = scheduler_of(8)
    store = scheduler.adapters.store
    cold, idle = store.register("cold", 2), store.register("idle", 5)
    assert store.begin_load(idle.generation)
    store.finish_load(idle.generation)
    first, second = item_of(1, cold.generation), item_of(2, length=2 * PAGE)
    scheduler.add(first)
    scheduler.add(second)
    step = scheduler.plan()
    assert step is not None
    assert [piece.item for piece in step.slices] == [second]
    assert first.state is ItemState.MOVING
    assert (idle.state, store.evictions) == (AdapterState.REGISTERED, 1)
    scheduler.commit(step, {2: 7})
    assert scheduler.adapters.to_load == [cold.generation]
    scheduler.adapter_loaded(cold.generation)
    step = scheduler.plan()
    assert step is not None
    assert {piece.item for piece in step.slices} == {first, second}
    assert step.adapter_pages == 2
    assert scheduler.counters.preemptions == 0
    scheduler.check_integrity()
    scheduler.cancel(1)
    assert cold.state is AdapterState.RESIDENT


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = scheduler_of(8)
    big = scheduler.adapters.store.register("big", 6)
    scheduler.add(item_of(1, big.generation))
    with pytest.raises(HeadraceError, match="a request needs 3 pages and adapters 6, the page pool has 8"):
        scheduler.add(item_of(2, big.generation, length=2 * PAGE))
    with pytest.raises(HeadraceError, match="generation 77 is gone"):
        scheduler.add(item_of(3, 77))
    with pytest.raises(HeadraceError, match="at most half of the pool's 8"):
        scheduler.adapters.keep(big, scheduler.items)
    small = scheduler.adapters.store.register("small", 1)
    with pytest.raises(HeadraceError, match="a request that is under way needs 2 pages and adapters 7"):
        scheduler.adapters.keep(small, scheduler.items)
    scheduler.check_integrity()


def test_known_pages_of_other_adapters_scales_or_generations_are_never_found() -> None:
    scheduler = scheduler_of(64)
    one, other = (scheduler.adapters.store.register(name, 1) for name in ("one", "other"))

    def found(item_id: int, adapters: tuple[tuple[int, float], ...]) -> int:
        prompt = [5] * (4 * PAGE + 1)
        item = Item(item_id, ItemKind.GENERATE, prompt, len(prompt), 1, adapters=adapters)
        scheduler.add(item)
        while scheduler.live:
            step = scheduler.plan()
            for generation in scheduler.adapters.to_load:
                scheduler.adapter_loaded(generation)
            scheduler.adapters.to_load.clear()
            if step is not None:
                for done in scheduler.commit(step, {piece.item.item_id: 3 for piece in step.slices if piece.completes}):
                    scheduler.finish(done)
        return item.found // PAGE

    kinds = [(), ((one.generation, 1.0),), ((one.generation, 0.5),), ((other.generation, 1.0),)]
    both = [((one.generation, 1.0), (other.generation, 1.0)), ((other.generation, 1.0), (one.generation, 1.0))]
    for index, adapters in enumerate([*kinds, *both]):
        assert found(2 * index, adapters) == 0
        assert found(2 * index + 1, adapters) == 4
    scheduler.check_integrity()


def test_the_queue_is_fetched_ahead_within_a_tenth_of_the_pool() -> None:
    scheduler = scheduler_of(40)
    store = scheduler.adapters.store
    records = [store.register(str(index), 2) for index in range(4)]
    scheduler.add(item_of(9, length=36 * PAGE, limit=30))
    for index, record in enumerate(records):
        scheduler.add(item_of(index, record.generation, length=8 * PAGE))
    assert scheduler.plan() is not None
    assert [record.state for record in records] == [AdapterState.LOADING, *[AdapterState.REGISTERED] * 3]
    assert store.ahead_pages == 2
    scheduler.check_integrity()


def test_roots_of_adapters_that_left_nothing_are_dropped() -> None:
    pool = PagePool(4, PAGE)
    scheduler = Scheduler(SchedulingSettings(), pool, Cost(), POLICIES.get("fcfs"))
    assert scheduler.index is not None
    for number in range(1000):
        pages = pool.allocate(1)
        assert pages is not None
        scheduler.index.add(("", ((number, 1.0),)), [number] * PAGE, pages, 0, 1)
        pool.release(pages)
    assert len(scheduler.index._roots) < 200
    scheduler.check_integrity()
