"""Page accounting against the plainest possible oracle: a dictionary from page to number of owners."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.memory.free_runs import runs_of
from headrace.memory.page_pool import PagePool
from headrace.memory.page_table import fork_pages, is_private, put_page


def test_allocation_is_all_or_nothing() -> None:
    pool = PagePool(4, 16)
    first = pool.allocate(3)
    assert first is not None
    assert len(set(first)) == 3
    assert pool.allocate(2) is None
    assert (pool.free, pool.held, pool.available) == (1, 3, 1)
    assert pool.allocate(0) == []
    pool.release(first)
    pool.check_integrity([])


def test_reserved_pages_are_not_given_to_others() -> None:
    pool = PagePool(4, 16)
    assert pool.reserve(3)
    assert not pool.reserve(2)
    assert pool.allocate(2) is None
    taken = pool.allocate_reserved(2)
    assert (pool.reserved, pool.free, pool.available) == (1, 2, 1)
    pool.unreserve(1)
    assert pool.allocate(2) is not None
    pool.release(taken)


def test_wrong_use_is_named() -> None:
    pool = PagePool(2, 16)
    with pytest.raises(ValueError, match="is free already"):
        pool.release([0])
    with pytest.raises(ValueError, match="can't be shared"):
        pool.share([1])
    with pytest.raises(ValueError, match="of 0 reserved"):
        pool.allocate_reserved(1)
    with pytest.raises(ValueError, match="of 0 reserved"):
        pool.unreserve(1)
    with pytest.raises(ValueError, match="can't take -1"):
        pool.allocate(-1)
    with pytest.raises(ValueError, match="can't reserve -1"):
        pool.reserve(-1)


@pytest.mark.parametrize(("total", "tokens", "field"), [(0, 16, "total"), (-1, 16, "total"), (4, 0, "page_tokens")])
def test_impossible_pools_are_refused(total: int, tokens: int, field: str) -> None:
    with pytest.raises(HeadraceError) as caught:
        PagePool(total, tokens)
    assert caught.value.param == field


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert PagePool(1, 16).pages_for(tokens) == pages


def test_integrity_finds_each_kind_of_fault() -> None:
    def broken() -> tuple[PagePool, list[int]]:
        pool = PagePool(4, 16)
        pages = pool.allocate(2)
        assert pages is not None
        pool.check_integrity([pages])
        return pool, pages

    pool, pages = broken()
    with pytest.raises(AssertionError, match="counts 1 owners, 0 hold it"):
        pool.check_integrity([])
    with pytest.raises(AssertionError, match="counts 1 owners, 2 hold it"):
        pool.check_integrity([pages, pages])
    with pytest.raises(AssertionError, match="unknown page"):
        pool.check_integrity([[*pages, 99]])
    pool._open.add(pages[0], 1)
    with pytest.raises(AssertionError, match="free is True"):
        pool.check_integrity()
    pool, pages = broken()
    pool._kept.add(2, 1)
    with pytest.raises(AssertionError, match="twice"):
        pool.check_integrity()
    pool, pages = broken()
    pool._open.take(2, 2)
    pool._kept.add(3, 1)
    with pytest.raises(AssertionError, match="kept back for nobody"):
        pool.check_integrity()
    pool, pages = broken()
    pool.reserved = 3
    with pytest.raises(AssertionError, match="reserved"):
        pool.check_integrity()


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_random_operations_agree_with_the_oracle(total: int, seed: int) -> None:
    generator = random.Random(seed)
    pool = PagePool(total, 16)
    owners: list[list[int]] = []
    reserved = 0
    for _ in range(100):
        count = generator.randint(0, total)
        action = generator.randrange(6)
        free = total - len({page for pages in owners for page in pages})
        after = generator.choice(owners)[-1] if owners and generator.random() < 0.7 else None
        want = generator.randrange(8)
        if action == 0:
            taken = pool.allocate(count, after, want)
            assert (taken is not None) == (count <= free - reserved)
            owners += [taken] if taken else []
        elif action == 1 and owners:
            pool.release(owners.pop(generator.randrange(len(owners))))
        elif action == 2 and owners:
            owners.append(fork_pages(pool, generator.choice(owners)))
        elif action == 3:
            granted = pool.reserve(count)
            assert granted == (count <= free - reserved)
            reserved += count if granted else 0
        elif action == 4 and reserved:
            count = generator.randint(1, reserved)
            owners.append(pool.allocate_reserved(count, after, want))
            reserved -= count
        elif reserved:
            count = generator.randint(1, reserved)
            pool.unreserve(count)
            reserved -= count
        assert pool.reserved == reserved
        pool.check_integrity(owners)


def test_a_growing_owner_stays_in_one_run() -> None:
    pool = PagePool(40, 16)
    first, second = pool.allocate(3, None, 5), pool.allocate(2, None, 10)
    assert first is not None
    assert second is not None
    for _ in range(5):
        first += pool.allocate(1, first[-1], 4) or []
        second += pool.allocate(1, second[-1], 9) or []
    assert runs_of(first) == [(0, 8)]
    assert runs_of(second) == [(8, 7)]
    assert pool.reach == 15


def test_what_an_owner_may_want_is_cut_from_its_end_before_anyone_goes_without() -> None:
    pool = PagePool(20, 16)
    first, second = pool.allocate(1, None, 9), pool.allocate(1, None, 9)
    assert first == [0]
    assert second == [10]
    third = pool.allocate(3)
    assert third == [17, 18, 19]
    assert pool.allocate(6, 0) == [1, 2, 3, 4, 5, 6]
    assert pool.allocate(9, 10) is not None
    assert pool.free == 0
    pool.check_integrity()


def test_cached_pages_make_room_in_runs_and_before_stretches_are_cut() -> None:
    pool = PagePool(64, 16)
    grower = pool.allocate(1, want=15)
    old = pool.allocate(48)
    assert grower is not None
    assert old is not None
    pool.keep(old)
    random.Random(4).shuffle(old)
    pool.release(old)
    assert pool.cached == 48
    taken = pool.allocate(2, want=10)
    assert taken is not None
    assert pool.cached == 48 - 12, "what the owner wants is made blank at once"
    for _ in range(15):
        grown = pool.allocate(1, grower[-1], 15)
        assert grown == [grower[-1] + 1], "nobody cut its stretch"
        grower += grown
    assert pool.allocate(3, want=1000) is not None
    assert 36 - (3 + 9) <= pool.cached < 36, "at most a quarter goes for what is only wanted"
    pool.check_integrity()


def test_an_epoch_tells_whether_a_page_was_handed_out_again() -> None:
    pool = PagePool(1, 16)
    assert pool.epoch(0) == 0
    for turn in (1, 2):
        assert pool.allocate(1) == [0]
        pool.share((0,))
        assert pool.epoch(0) == turn
        pool.release((0, 0))
        assert pool.epoch(0) == turn


def test_a_fork_writes_into_its_own_copy_only() -> None:
    pool = PagePool(8, 16)
    parent = pool.allocate(2)
    assert parent is not None
    child = fork_pages(pool, parent)
    assert child == parent
    assert child is not parent
    assert not is_private(pool, child, 1)
    fresh = pool.allocate(1)
    assert fresh is not None
    assert put_page(pool, child, 1, fresh[0]) == parent[1]
    assert is_private(pool, child, 1)
    assert is_private(pool, parent, 1)
    assert not is_private(pool, parent, 0)
    more = pool.allocate(1)
    assert more is not None
    assert not is_private(pool, child, 2)
    assert put_page(pool, child, 2, more[0]) is None
    pool.check_integrity([parent, child])


def test_cost_is_constant_per_page() -> None:
    def seconds_a_page(total: int) -> float:
        pool = PagePool(total, 16)
        best = 1.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(200):
                pages = pool.allocate(50)
                assert pages is not None
                pool.release(pages)
            best = min(best, (time.perf_counter() - began) / 10_000)
        return best

    assert seconds_a_page(100_000) < 5 * seconds_a_page(1_000)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_withheld_pages_are_nobodys_until_they_are_given_back(total: int, rng: random.Random) -> None:
    pool = PagePool(total, 4)
    held: list[list[int]] = []
    for _ in range(80):
        before = pool.usable, pool.held
        match rng.randrange(5):
            case 0:
                asked, room = rng.randint(0, total), pool.available
                runs = pool.withhold(asked)
                assert sum(length for _, length in runs) == before[0] - pool.usable == min(asked, room)
                away = {page for start, length in runs for page in range(start, start + length)}
                assert not away & {page for pages in held for page in pages}
            case 1:
                asked = rng.randint(0, total)
                pool.give_back(asked)
                assert pool.usable == min(total, before[0] + asked)
            case 2:
                pages = pool.allocate(rng.randint(1, 6), held[-1][-1] if held and held[-1] else None, rng.randint(0, 4))
                if pages is not None:
                    held.append(pages)
                    if rng.random() < 0.4:
                        pool.keep(pages)
            case 3 if held:
                pool.release(held.pop(rng.randrange(len(held))))
            case _:
                if pool.reserve(1):
                    pool.withhold(total)
                    pool.unreserve(1)
        pool.check_integrity(held)
    assert pool.held == sum(map(len, held))
