"""The prefix index against a slow oracle, and against whoever would like to read a stranger's pages."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.memory.page_pool import PagePool
from headrace.memory.prefix_index import KnownRun, PrefixIndex

SIZE = 4  # tokens a page
Beginning = tuple[str, tuple[int, ...]]


class World:
    """Sequences that come, grow, fork and go on one pool; ``said`` remembers what was written to each page."""

    def __init__(self, seed: int, pages: int) -> None:
        self.random = random.Random(seed)
        self.pool = PagePool(pages, SIZE)
        self.index = PrefixIndex(self.pool)
        self.tables: list[list[int]] = []
        self.said: dict[int, Beginning] = {}
        self.hits = 0

    def known(self) -> dict[Beginning, int]:
        """Slow oracle: every known beginning, spelt from its page up to the root."""
        beginnings = {}
        tenants = {root: tenant for tenant, root in self.index._roots.items() if isinstance(tenant, str)}
        for page, known in enumerate(self.index.known):
            if known is None:
                continue
            run = known
            tokens = list(memoryview(run.tokens).cast("i")[: (run.pages.index(page) + 1) * SIZE])
            while (above := run.parent) is not None:
                run = above
                tokens = [*memoryview(run.tokens).cast("i"), *tokens]
            beginnings[tenants[run], tuple(tokens)] = page
        return beginnings

    def come(self) -> None:
        tenant = self.random.choice(("", "a", "b"))
        tokens = [self.random.randrange(2) for _ in range(SIZE * self.random.randint(1, 6))]  # few tokens: many are alike
        full = len(tokens) // SIZE
        most = self.random.randint(0, full)
        found = self.index.find(tenant, tokens, most)
        known = self.known()
        for level, one in enumerate(found, 1):
            assert known[tenant, tuple(tokens[: level * SIZE])] == one
            assert self.said[one] == (tenant, tuple(tokens[: level * SIZE]))
        self.hits += len(found)
        longest = max(
            (len(said) // SIZE for name, said in known if name == tenant and tuple(tokens[: len(said)]) == said), default=0
        )
        assert len(found) == min(most, longest)
        table = list(found)
        self.pool.share(table)
        fresh = self.pool.allocate(full - len(table))
        if fresh is None:
            self.pool.release(table)
            return
        for level, page in enumerate(fresh, len(found) + 1):
            self.said[page] = (tenant, tuple(tokens[: level * SIZE]))
        table += fresh
        at = len(found)
        while at < full:  # chunk by chunk, as prompts are computed
            stop = self.random.randint(at + 1, full)
            self.index.add(tenant, tokens, table, at, stop)
            at = stop
        assert [self.said[page] for page in table] == [(tenant, tuple(tokens[: n * SIZE])) for n in range(1, full + 1)]
        self.tables.append(table)

    def fork(self) -> None:
        if self.tables:
            table = self.random.choice(self.tables)
            self.pool.share(table)
            self.tables.append(list(table))

    def go(self) -> None:
        if self.tables:
            self.pool.release(self.tables.pop(self.random.randrange(len(self.tables))))

    def turn(self) -> None:
        self.random.choice((self.come, self.go, self.fork, self.come, self.go))()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), pages=st.integers(1, 40))
def test_random_operations_agree_with_the_oracle(seed: int, pages: int) -> None:
    world = World(seed, pages)
    for _ in range(60):
        world.turn()
        world.pool.check_integrity(world.tables)
        world.index.check_integrity()
    for table in world.tables:
        world.pool.release(table)
    assert world.pool.free == pages


def test_ten_thousand_operations_find_and_forget() -> None:
    world = World(3, 48)
    for _ in range(10_000):
        world.turn()
    world.pool.check_integrity(world.tables)
    world.index.check_integrity()
    assert world.hits > 500
    assert world.index.evictions > 500


def grown(index: PrefixIndex, pool: PagePool, tokens: list[int], tenant: str = "") -> list[int]:
    """A finished sequence: its pages are cached."""
    table = pool.allocate(len(tokens) // SIZE)
    assert table is not None
    index.add(tenant, tokens, table, 0, len(table))
    pool.release(table)
    return table


def test_another_tenant_finds_nothing() -> None:
    pool = PagePool(8, SIZE)
    index = PrefixIndex(pool)
    tokens = list(range(12))
    table = grown(index, pool, tokens, "mine")
    assert index.find("mine", tokens, 3) == table
    for stranger in ("", "Mine", "mine ", "other"):
        assert index.find(stranger, tokens, 3) == []


def test_equal_hashes_give_no_stranger_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    class Colliding(bytes):
        def __hash__(self) -> int:
            return 7

        def __getitem__(self, part: slice) -> bytes:  # type: ignore[override]
            return Colliding(super().__getitem__(part))

        def __add__(self, more: bytes) -> bytes:  # type: ignore[override]
            return Colliding(super().__add__(more))

    pool = PagePool(64, SIZE)
    index = PrefixIndex(pool)
    real = PrefixIndex.pack
    monkeypatch.setattr(PrefixIndex, "pack", lambda *arguments: Colliding(real(*arguments)))
    tables = {first: grown(index, pool, [first, *range(11)]) for first in range(12)}
    for first, table in tables.items():
        assert index.find("", [first, *range(11)], 3) == table
    assert index.find("", [12, *range(11)], 3) == []
    assert len(index.find("", [3, *range(7), 99, 8, 9, 10], 3)) == 2


def test_the_oldest_ends_go_first_and_held_pages_never() -> None:
    pool = PagePool(6, SIZE)
    index = PrefixIndex(pool)
    old = grown(index, pool, [1] * 12)
    young = grown(index, pool, [2] * 12)
    pool.share(young)
    assert pool.allocate(4) is None
    taken = pool.allocate(2)
    assert taken is not None
    assert index.find("", [1] * 12, 3) == old[:1]
    assert index.find("", [2] * 12, 3) == young
    assert index.evictions == 2
    pool.release(young)
    assert pool.allocate(1) == [old[0]]
    index.check_integrity()


def test_a_cache_full_of_held_pages_gives_nothing() -> None:
    pool = PagePool(3, SIZE)
    index = PrefixIndex(pool)
    table = grown(index, pool, [1] * 12)
    pool.share(table)
    assert pool.available == 0
    assert pool.allocate(1) is None
    assert not pool.reserve(1)
    assert len(index.find("", [1] * 12, 3)) == 3


def test_a_page_computed_twice_is_kept_once() -> None:
    pool = PagePool(8, SIZE)
    index = PrefixIndex(pool)
    tokens = [5] * 8
    first, second = pool.allocate(2), pool.allocate(2)
    assert first is not None
    assert second is not None
    index.add("", tokens, first, 0, 2)
    index.add("", tokens, second, 0, 2)
    assert second == first
    assert pool.held == 2
    pool.check_integrity([first, second])


def test_integrity_finds_faults() -> None:
    pool = PagePool(8, SIZE)
    index = PrefixIndex(pool)
    table = grown(index, pool, [1] * 12)
    index.check_integrity()
    node = index.known[table[0]]
    assert isinstance(node, KnownRun)
    index.known[table[0]] = None
    with pytest.raises(AssertionError, match="in the tree twice"):
        index.check_integrity()
    index.known[table[0]] = node
    pool._marked[table[0]] = 0
    with pytest.raises(AssertionError, match="not marked"):
        pool.check_integrity()


def test_a_branch_goes_with_the_page_it_hangs_on() -> None:
    """A move may hold the end of a sequence whose beginning nobody holds any more."""
    pool = PagePool(4, SIZE)
    index = PrefixIndex(pool)
    table = pool.allocate(3)
    assert table is not None
    index.add("", [1] * 12, table, 0, 3)
    pool.release(table[:1])
    pool.release(table[2:])
    assert pool.cached == 2
    taken = pool.allocate(3)
    assert taken is not None
    assert index.find("", [1] * 12, 3) == []
    index.check_integrity()
    pool.release(table[1:2])
    pool.check_integrity([taken])
    assert pool.cached == 0


def test_a_branch_in_the_middle_of_a_run_parts_it() -> None:
    pool = PagePool(16, SIZE)
    index = PrefixIndex(pool)
    table = grown(index, pool, [1] * 24)
    other = [*[1] * 12, *[2] * 12]
    found = index.find("", other, 6)
    assert found == table[:3]
    pool.share(found)
    branch = [*found, *(pool.allocate(3) or [])]
    index.add("", other, branch, 3, 6)
    index.check_integrity()
    assert index.find("", [1] * 24, 6) == table
    assert index.find("", other, 6) == branch
    assert len({id(run) for run in index.known if run is not None}) == 3


@pytest.mark.parametrize("pages", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_long_runs_are_found_up_to_the_first_difference(pages: int, chunk: int) -> None:
    pool = PagePool(2 * pages, SIZE)
    index = PrefixIndex(pool)
    tokens = list(range(pages * SIZE))
    table = pool.allocate(pages) or []
    for first in range(0, pages, chunk):
        index.add("", tokens, table, first, min(pages, first + chunk))
    index.check_integrity()
    assert len({id(run) for run in index.known if run is not None}) == 1
    for wrong in range(0, pages * SIZE, 11):
        asked = [*tokens[:wrong], -1, *tokens[wrong + 1 :]]
        assert index.find("", asked, pages) == table[: wrong // SIZE]
    assert index.find("", [*tokens, 5], pages) == table


def test_an_entry_is_small_beside_its_page() -> None:
    pool = PagePool(128, 16)
    index = PrefixIndex(pool)
    table = pool.allocate(128) or []
    index.add("", list(range(2048)), table, 0, 128)
    run = index.known[table[0]]
    assert run is not None
    size = sum(sys.getsizeof(part) for part in (run, run.pages, run.tokens)) + 128 * 8
    assert size / 128 < 0.01 * 16 * 1024  # 1 % of a page of a very small model: 1 KiB a token
