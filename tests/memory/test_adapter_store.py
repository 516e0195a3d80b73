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
    old, used, wanted = resident(store, "old", 2), resident(store, "used", 2), resident(store, "wanted", 2)
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


@pytest.mark.parametrize("seed", range(6))
def test_random_lives_leak_nothing(seed: int) -> None:
    generator = random.Random(seed)
    pool = PagePool(40, 16)
    store = AdapterStore(pool, 0.25)
    evicted: list[AdapterRecord] = []
    store.on_evict = evicted.append
    kv: list[list[int]] = []
    pins: list[int] = []
    waits: list[int] = []
    for turn in range(2_000):
        known = list(store)
        record = generator.choice(known) if known else None
        action = generator.randrange(11)
        if action == 0 or record is None:
            store.register(f"a{generator.randrange(12)}", generator.randrange(1, 9))
        elif action == 1 and not record.retired:
            store.retire(record.name)
        elif action in (2, 3) and not record.pages:
            store.begin_load(record.generation, ahead=generator.random() < 0.3)
        elif action == 4 and record.loading:
            (store.finish_load if generator.random() < 0.9 else store.abandon_load)(record.generation)
        elif action == 5 and record.state in (AdapterState.RESIDENT, AdapterState.PINNED):
            store.pin(record.generation)
            pins.append(record.generation)
        elif action == 6 and pins:
            store.unpin(pins.pop(generator.randrange(len(pins))))
        elif action == 7 and not record.retired:
            store.wait(record.generation)
            waits.append(record.generation)
        elif action == 8 and waits:
            store.unwait(waits.pop(generator.randrange(len(waits))))
        elif action == 9 and store.make_room(count := generator.randrange(1, 10)):
            kv.append(pool.allocate(count) or [])
            assert kv[-1], "room was made"
        elif action == 10 and kv:
            pool.release(kv.pop(generator.randrange(len(kv))))
        assert all(not pins.count(one.generation) for one in evicted)
        evicted.clear()
        if turn % 50 == 0:
            store.check_integrity()
            pool.check_integrity([*kv, *store.holders()])
        assert pool.available + store.evictable <= pool.total
    for generation in pins:
        store.unpin(generation)
    for generation in waits:
        store.unwait(generation)
    for record in list(store):
        if record.loading:
            store.finish_load(record.generation)
        if not record.retired:
            store.retire(record.name)
    for pages in kv:
        pool.release(pages)
    assert (len(store), pool.free, store.resident_pages, store.ahead_pages) == (0, 40, 0, 0)
