"""Views on real memory: contiguous bytes, sharing, limits of the system, and a thread that shows beside the steps."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest

from headrace.memory.address_space import maps_in_use
from headrace.memory.arena import Arena
from headrace.memory.view_ledger import NOWHERE
from headrace.memory.views import ViewPlan, Views, plan_views

PAGES, RANGE = 40, 24


@pytest.fixture(params=[1, 3], ids=["whole pages", "strips"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    with Arena(PAGES, request.param * 4096, request.param, 6 * RANGE) as made:
        for page in range(PAGES):
            made.bytes[page] = page + 1
        yield made


def views_of(arena: Arena, ahead: int = 4) -> Views:
    return Views(arena, ViewPlan(6, RANGE), ahead=ahead)


def seen(arena: Arena, first: int, count: int) -> list[int]:
    rows = arena.rows[first : first + count].reshape(count, -1)
    assert (rows == rows[:, :1]).all()
    return [int(value) - 1 for value in rows[:, 0]]


def test_pages_stand_one_after_the_other(arena: Arena) -> None:
    views = views_of(arena)
    pages = [7, 8, 3, 30, 31, 32]
    first, straight = views.place((1, 2), [(1, pages), (2, [10, 11])])
    assert straight == 10
    assert first >= PAGES
    assert seen(arena, first, 6) == pages
    arena.bytes[30] = 250
    assert seen(arena, first, 6)[3] == 249
    views.close()


def test_prefixes_are_one_memory_and_copies_come_apart(arena: Arena) -> None:
    views = views_of(arena)
    parent, child = [5, 2, 9], [5, 2, 9]
    one, other = views.place((1, 2), [(1, parent), (2, child)])
    assert one != other
    arena.bytes[9] = 99
    assert seen(arena, one, 3) == seen(arena, other, 3) == [5, 2, 98]
    arena.bytes[20] = arena.bytes[9]  # copy on write: the page table says so, the view follows
    child[2] = 20
    one, other = views.place((1, 2), [(1, parent), (2, child)])
    arena.bytes[20] = 120
    assert (seen(arena, one, 3), seen(arena, other, 3)) == ([5, 2, 98], [5, 2, 119])
    views.close()


def test_pages_shown_ahead_are_there(arena: Arena) -> None:
    views = views_of(arena)
    pages = [5, 2]
    for page in range(3, 12):
        (first,) = views.place((1,), [(1, pages)])
        assert seen(arena, first, len(pages)) == pages
        views.look_ahead((1,))
        pages.append(page)
    assert views.ledger.counters.shown == 2
    assert views.ledger.counters.ahead == 4 * 3
    assert views.beside_seconds > 0
    views.close()


def test_random_sequences_and_mappings_as_counted(arena: Arena) -> None:
    rng = random.Random(3)
    views, tables = views_of(arena), dict[int, list[int]]()
    before = maps_in_use()
    for number in range(1500):
        if len(tables) < 8 and rng.random() < 0.3:
            tables[number] = [rng.randrange(PAGES)]
        for pages in tables.values():
            if rng.random() < 0.4 and len(pages) < RANGE:
                pages.append(min(PAGES - 1, pages[-1] + 1) if rng.random() < 0.8 else rng.randrange(PAGES))
        if tables and rng.random() < 0.2:
            del tables[rng.choice(list(tables))]
        if tables and rng.random() < 0.05:
            views.forget(rng.choice(list(tables)))
        firsts = views.place(tables, list(tables.items()))
        for first, pages in zip(firsts, tables.values(), strict=True):
            assert first == NOWHERE or seen(arena, first, len(pages)) == pages
        views.look_ahead(tables)
        if number % 100 == 0:
            views.ledger.check_integrity()
            assert maps_in_use() - before <= views.ledger.maps + 40
    views.close()
    assert maps_in_use() - before < 40


def test_a_mapping_that_fails_leaves_the_table(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    views = views_of(arena)

    def refuse(*_: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(arena, "alias", refuse)
        assert views.place((1,), [(1, [5, 2])]) == [NOWHERE]
        assert views.place((1,), [(1, [5, 2])]) == [NOWHERE]
    assert views.failures >= 1
    views.ledger.check_integrity()
    assert views.place((1, 2), [(2, [5, 2])])[0] >= PAGES
    views.close()


def test_plans_stay_inside_the_addresses() -> None:
    assert plan_views(4096 * 90, 1, 512, 256).ranges == 256 + 64
    assert plan_views(4097, 1, 512, 256).rows == 0
    assert plan_views(4096, 3, 512, 256).rows == 0
    huge = plan_views(2**24, 8, 2**16, 4096)
    assert 0 < huge.rows * 2**24 <= 2**44


def test_pages_that_cannot_be_shown_twice_are_read_where_they_are() -> None:
    with Arena(PAGES, 5000, 1, 100) as arena:
        assert arena.aliases == 0
        views = Views(arena, plan_views(5000, 1, RANGE, 4))
        assert views.place((1, 2), [(1, [5, 6]), (2, [6, 5])]) == [5, NOWHERE]
        views.close()


def test_aliases_outside_their_rows_are_refused(arena: Arena) -> None:
    for row, count in ((PAGES - 1, 1), (PAGES, 0), (PAGES + 6 * RANGE, 1)):
        with pytest.raises(ValueError, match="not among"):
            arena.alias(row, 0, count)


def test_strips_lie_apart_and_touching_keeps_them() -> None:
    with Arena(10, 3 * 4096, 3) as arena:
        assert arena.bytes.shape == (10, 3, 4096)
        arena.bytes[4, 1] = 7
        arena.touch(10)
        assert arena.touched_bytes == arena.size
        memory = np.zeros(arena.size, np.uint8)
        memory[(10 + 4) * 4096 : (10 + 5) * 4096] = 7
        assert os.pread(arena.fileno(), arena.size, 0) == memory.tobytes()
