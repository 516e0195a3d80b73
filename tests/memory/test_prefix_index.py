"""The prefix index against a slow oracle, and against whoever would like to read a stranger's pages."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.memory.page_pool import PagePool
from headrace.memory.prefix_index import NO_PAGE, KnownPage, PrefixIndex, chain_digest

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
        for known in self.index.known:
            node = known
            tokens: list[int] = []
            while node is not None and node.page != NO_PAGE:
                tokens = [*memoryview(node.key).cast("i"), *tokens]
                tenant = node.parent.key.decode() if node.parent is not None else ""
                node = node.parent
            if known is not None:
                beginnings[tenant, tuple(tokens)] = known.page
        return beginnings

    def come(self) -> None:
        tenant = self.random.choice(("", "a", "b"))
        tokens = [self.random.randrange(2) for _ in range(SIZE * self.random.randint(1, 6))]  # few tokens: many are alike
        full = len(tokens) // SIZE
        found = self.index.find(tenant, tokens, self.random.randint(0, full))
        known = self.known()
        for level, one in enumerate(found, 1):
            assert known[tenant, tuple(tokens[: level * SIZE])] == one.page
            assert self.said[one.page] == (tenant, tuple(tokens[: level * SIZE]))
        self.hits += len(found)
        table = [page.page for page in found]
        self.pool.share(table)
        fresh = self.pool.allocate(full - len(table))
        if fresh is None:
            self.pool.release(table)
            return
        for level, page in enumerate(fresh, len(found) + 1):
            self.said[page] = (tenant, tuple(tokens[: level * SIZE]))
        table += fresh
        last = self.index.add(found[-1] if found else self.index.root(tenant), tokens, table, len(found), full)
        assert [self.said[page] for page in table] == [(tenant, tuple(tokens[: n * SIZE])) for n in range(1, full + 1)]
        assert last.page == table[-1]
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
    index.add(index.root(tenant), tokens, table, 0, len(table))
    pool.release(table)
    return table


def test_another_tenant_finds_nothing() -> None:
    pool = PagePool(8, SIZE)
    index = PrefixIndex(pool)
    tokens = list(range(12))
    table = grown(index, pool, tokens, "mine")
    assert [page.page for page in index.find("mine", tokens, 3)] == table
    for stranger in ("", "Mine", "mine ", "other"):
        assert index.find(stranger, tokens, 3) == []


def test_equal_hashes_give_no_stranger_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    class Colliding(bytes):
        def __hash__(self) -> int:
            return 7

        def __getitem__(self, part: slice) -> bytes:  # type: ignore[override]
            return Colliding(super().__getitem__(part))

    pool = PagePool(64, SIZE)
    index = PrefixIndex(pool)
    real = PrefixIndex.pack
    monkeypatch.setattr(PrefixIndex, "pack", lambda *arguments: Colliding(real(*arguments)))
    tables = {first: grown(index, pool, [first, *range(11)]) for first in range(12)}
    for first, table in tables.items():
        assert [page.page for page in index.find("", [first, *range(11)], 3)] == table
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
    assert [page.page for page in index.find("", [1] * 12, 3)] == old[:1]
    assert [page.page for page in index.find("", [2] * 12, 3)] == young
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
    index.add(index.root(""), tokens, first, 0, 2)
    index.add(index.root(""), tokens, second, 0, 2)
    assert second == first
    assert pool.held == 2
    pool.check_integrity([first, second])


def test_integrity_finds_faults() -> None:
    pool = PagePool(8, SIZE)
    index = PrefixIndex(pool)
    table = grown(index, pool, [1] * 12)
    index.check_integrity()
    node = index.known[table[0]]
    assert node is not None
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
    index.add(index.root(""), [1] * 12, table, 0, 3)
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


def test_digests_name_tenant_and_all_tokens_before() -> None:
    pool = PagePool(16, SIZE)
    index = PrefixIndex(pool)
    grown(index, pool, [1] * 8, "a")
    grown(index, pool, [1] * 8, "b")
    names = {page.digest for tenant in "ab" for page in index.find(tenant, [1] * 8, 2)}
    assert len(names) == 4
    first, second = index.find("a", [1] * 8, 2)
    assert first.digest == chain_digest(chain_digest(None, b"a"), first.key)
    assert second.digest == chain_digest(first.digest, second.key)


def test_an_entry_is_small_beside_its_page() -> None:
    pool = PagePool(2, 16)
    index = PrefixIndex(pool)
    table = pool.allocate(2)
    assert table is not None
    node: KnownPage | None = index.add(index.root(""), list(range(32)), table, 0, 2)
    size = 0
    while node is not None and node.page != NO_PAGE:
        size += sys.getsizeof(node) + sys.getsizeof(node.key) + (sys.getsizeof(node.children) if node.children else 0)
        node = node.parent
    assert size / 2 < 0.02 * 16 * 1024  # 2 % of a page of a very small model: 1 KiB a token
