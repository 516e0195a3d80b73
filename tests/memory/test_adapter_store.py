"""The life of adapters in a pool, step by step and under thousands of random operations."""

from __future__ import annotations

import random

import pytest

from headrace.errors import HeadraceError
from headrace.memory.adapter_store import AdapterRecord, AdapterState, AdapterStore
from headrace.memory.page_pool import PagePool


def resident(store: AdapterStore, name: str, size: int) -> AdapterRecord:
    record = store.register(name, size)
    assert store.begin_load(record.generation) is not None
    store.finish_load(record.generation)
    return record


def states(*records: AdapterRecord) -> list[str]:
    return [record.state.value for record in records]


def test_a_life() -> None:
    pool = PagePool(10, 16)
    store = AdapterStore(pool)
    evicted: list[str] = []
    store.on_evict = lambda record: evicted.append(record.name)
    record = store.register("a", 4)
    assert (record.state, store.find("a"), pool.held) == (AdapterState.REGISTERED, record, 0)
    pages = store.begin_load(record.generation)
    assert pages is not None
    assert (len(pages), record.state, pool.held, store.evictable) == (4, AdapterState.LOADING, 4, 0)
    store.finish_load(record.generation)
    assert (record.state, store.evictable) == (AdapterState.RESIDENT, 4)
    store.pin(record.generation)
    store.pin(record.generation)
    store.unpin(record.generation)
    assert (record.state, store.make_room(7)) == (AdapterState.PINNED, False)
    store.unpin(record.generation)
    assert store.make_room(7)
    assert (record.state, evicted, pool.held) == (AdapterState.REGISTERED, ["a"], 0)
    assert store.begin_load(record.generation) is not None
    store.abandon_load(record.generation)
    assert (pool.held, store.resident_pages) == (0, 0)
    store.check_integrity()


def test_who_is_wanted_least_goes_first() -> None:
    store = AdapterStore(PagePool(12, 16), ahead_share=0.5)
    old, _, wanted = (resident(store, name, 2) for name in ("old", "used", "wanted"))
    ahead = store.register("ahead", 2)
    assert store.begin_load(ahead.generation, ahead=True) is not None
    store.finish_load(ahead.generation)
    store.wait(wanted.generation)
    store.wait(ahead.generation)
    store.pin(old.generation)
    store.unpin(old.generation)
    order = []
    for count in (6, 8, 10, 12):
        before = {record.name for record in store if record.pages}
        assert store.make_room(count)
        order += sorted(before - {record.name for record in store if record.pages})
    assert order == ["used", "old", "ahead", "wanted"]
    store.check_integrity()


def test_fetching_ahead_takes_little_and_from_nobody() -> None:
    store = AdapterStore(PagePool(20, 16), ahead_share=0.2)
    big, small, more = store.register("big", 5), store.register("small", 3), store.register("more", 2)
    assert store.begin_load(big.generation, ahead=True) is None
    assert store.begin_load(small.generation, ahead=True) is not None
    assert store.begin_load(more.generation, ahead=True) is None
    store.finish_load(small.generation)
    store.pin(small.generation)  # used: no longer ahead
    assert store.ahead_pages == 0
    full = resident(store, "full", 17)
    store.wait(full.generation)
    assert store.begin_load(more.generation, ahead=True) is None
    store.unwait(full.generation)
    assert store.begin_load(more.generation, ahead=True) is not None
    assert states(full, small, more) == ["registered", "pinned", "loading"]
    store.check_integrity()


def test_a_new_generation_leaves_the_old_one_to_its_users() -> None:
    pool = PagePool(10, 16)
    store = AdapterStore(pool)
    first = resident(store, "a", 3)
    store.wait(first.generation)
    store.pin(first.generation)
    second = store.register("a", 4)
    assert second.generation > first.generation
    assert store.find("a") is second
    assert first.retired
    store.unpin(first.generation)
    assert store.get(first.generation).pages  # its request is not over
    store.unwait(first.generation)
    assert (pool.held, len(store)) == (0, 1)
    with pytest.raises(ValueError, match="no adapter has generation 1"):
        store.get(first.generation)
    store.retire("a")
    assert (len(store), store.find("a")) == (0, None)


def test_wrong_use_is_named() -> None:
    store = AdapterStore(PagePool(4, 16))
    with pytest.raises(HeadraceError, match="takes 5 pages, the pool has 4"):
        store.register("a", 5)
    record = store.register("a", 2)
    for call, message in (
        (store.pin, "registered and can't be pinned"),
        (store.unpin, "is not pinned"),
        (store.unwait, "nobody waits"),
        (store.finish_load, "is not loading"),
        (store.abandon_load, "is not loading"),
    ):
        with pytest.raises(ValueError, match=message):
            call(record.generation)
    store.begin_load(record.generation)
    with pytest.raises(ValueError, match="is loading already"):
        store.begin_load(record.generation)
    with pytest.raises(ValueError, match="no adapter is called"):
        store.retire("b")


class Lives:
    """Random operations on a store and its pool, with keys and values beside the adapters."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pool = PagePool(40, 16)
        self.store = AdapterStore(self.pool, 0.25)
        self.store.on_evict = self.check_evicted
        self.kv: list[list[int]] = []
        self.pins: list[int] = []
        self.waits: list[int] = []

    def check_evicted(self, record: AdapterRecord) -> None:
        assert record.generation not in self.pins

    def turn(self) -> None:
        known = list(self.store)
        record = self.random.choice(known) if known else self.register()
        getattr(self, self.random.choice(("register", "retire", "begin", "begin", "end", "pin", "wait", "let_go", "take", "give")))(
            record
        )

    def register(self, _: AdapterRecord | None = None) -> AdapterRecord:
        return self.store.register(f"a{self.random.randrange(12)}", self.random.randrange(1, 9))

    def retire(self, record: AdapterRecord) -> None:
        if not record.retired:
            self.store.retire(record.name)

    def begin(self, record: AdapterRecord) -> None:
        if not record.pages:
            self.store.begin_load(record.generation, ahead=self.random.random() < 0.3)

    def end(self, record: AdapterRecord) -> None:
        if record.loading:
            (self.store.finish_load if self.random.random() < 0.9 else self.store.abandon_load)(record.generation)

    def pin(self, record: AdapterRecord) -> None:
        if record.state in (AdapterState.RESIDENT, AdapterState.PINNED):
            self.store.pin(record.generation)
            self.pins.append(record.generation)

    def wait(self, record: AdapterRecord) -> None:
        if not record.retired:
            self.store.wait(record.generation)
            self.waits.append(record.generation)

    def let_go(self, _: AdapterRecord) -> None:
        held, give_back = self.random.choice(((self.pins, self.store.unpin), (self.waits, self.store.unwait)))
        if held:
            give_back(held.pop(self.random.randrange(len(held))))

    def take(self, _: AdapterRecord) -> None:
        count = self.random.randrange(1, 10)
        promised = self.pool.available + self.store.evictable >= count
        assert self.store.make_room(count) == promised
        if promised:
            pages = self.pool.allocate(count)
            assert pages is not None, "room was made"
            self.kv.append(pages)

    def give(self, _: AdapterRecord) -> None:
        if self.kv:
            self.pool.release(self.kv.pop(self.random.randrange(len(self.kv))))

    def end_all(self) -> None:
        while self.pins:
            self.store.unpin(self.pins.pop())
        while self.waits:
            self.store.unwait(self.waits.pop())
        for record in list(self.store):
            self.end(record)
            self.retire(record)
        while self.kv:
            self.pool.release(self.kv.pop())


@pytest.mark.parametrize("seed", range(6))
def test_random_lives_leak_nothing(seed: int) -> None:
    lives = Lives(seed)
    for turn in range(2_000):
        lives.turn()
        if turn % 50 == 0:
            lives.store.check_integrity()
            lives.pool.check_integrity([*lives.kv, *lives.store.holders()])
    lives.end_all()
    store, pool = lives.store, lives.pool
    assert (len(store), pool.free, store.resident_pages, store.ahead_pages) == (0, 40, 0, 0)
