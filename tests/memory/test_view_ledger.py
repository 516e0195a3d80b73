"""The accounting of views against a model that carries every order out: rows must show the pages that were asked for."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.memory.view_ledger import NOWHERE, Showing, ViewLedger, ViewLimits

PAGES = 64


class Rows:
    """What each row shows: the pool's own rows, and whatever was ordered."""

    def __init__(self, limits: ViewLimits) -> None:
        self.limits = limits
        self.shown = {page: page for page in range(limits.pages)}

    def carry_out(self, orders: list[Showing]) -> None:
        for row, page, count in orders:
            assert count > 0
            assert self.limits.pages <= row
            assert row + count <= self.limits.pages + self.limits.ranges * self.limits.range_pages
            if page == NOWHERE:
                for index in range(count):
                    self.shown.pop(row + index, None)
                continue
            assert 0 <= page <= self.limits.pages - count
            self.shown |= {row + index: page + index for index in range(count)}

    def maps(self) -> int:
        """Mappings that the system would have: runs that are adjacent on both sides, and the holes behind them."""
        total, before = 0, (-9, -9)
        for row in sorted(row for row in self.shown if row >= self.limits.pages):
            page = self.shown[row]
            total += (before[0] + 1 != row) + (before != (row - 1, page - 1))
            before = row, page
        return total * self.limits.strips


def check(ledger: ViewLedger, rows: Rows, owner: int, pages: list[int]) -> int:
    first, orders = ledger.place(owner, pages)
    rows.carry_out(orders)
    ledger.check_integrity()
    if first != NOWHERE:
        assert [rows.shown.get(first + index) for index in range(len(pages))] == pages
    return first


@settings(max_examples=60, deadline=None)
@example(9004, 1, 2, 40)  # an owner outgrew its range and kept it
@given(st.integers(0, 2**32), st.sampled_from([1, 3]), st.sampled_from([2, 8]), st.sampled_from([12, 40, 400]))
def test_rows_show_what_was_asked_for(seed: int, strips: int, ranges: int, most: int) -> None:
    rng = random.Random(seed)
    limits = ViewLimits(PAGES, ranges, 20, strips, most)
    ledger, rows, tables = ViewLedger(limits), Rows(limits), dict[int, list[int]]()
    for number in range(120):
        change = rng.random()
        if change < 0.25 or not tables:
            tables[number] = pages = [rng.randrange(PAGES)]
            if rng.random() < 0.5 and len(tables) > 1:
                pages[:] = rng.choice(list(tables.values()))[: rng.randrange(1, 9)] or pages
        owner = rng.choice(list(tables))
        pages = tables[owner]
        if change < 0.65:
            grown = pages[-1] + 1 if rng.random() < 0.7 else rng.randrange(PAGES)
            pages.append(min(grown, PAGES - 1))
        elif change < 0.75:
            pages[rng.randrange(len(pages))] = rng.randrange(PAGES)
        elif change < 0.8:
            del pages[rng.randrange(1, len(pages) + 1) :]
        elif change < 0.9:
            del tables[owner]
            ledger.retain(tables)
            continue
        elif change < 0.93:
            rows.carry_out(ledger.forget(owner))
        elif change < 0.95:
            rows.carry_out(ledger.lose(owner))
        check(ledger, rows, owner, pages)
        ahead = ledger.look_ahead(owner, 4)
        rows.carry_out([ahead] if ahead else [])
        for other in rng.sample(list(tables), min(3, len(tables))):  # nobody else's rows have changed
            check(ledger, rows, other, tables[other])
        assert rows.maps() <= ledger.maps + 2 * ranges * strips


def ledger_of(ranges: int = 4, most: int = 400) -> tuple[ViewLedger, Rows]:
    limits = ViewLimits(PAGES, ranges, 32, 1, most)
    return ViewLedger(limits), Rows(limits)


def test_adjacent_pages_need_no_range() -> None:
    ledger, rows = ledger_of()
    assert check(ledger, rows, 1, [5]) == 5
    assert check(ledger, rows, 1, [5, 6, 7]) == 5
    assert ledger.ranges_in_use == ledger.maps == 0
    assert check(ledger, rows, 1, [5, 6, 7, 9]) == PAGES
    assert ledger.counters.shown == 4


def test_what_was_shown_ahead_costs_nothing_when_it_comes() -> None:
    ledger, rows = ledger_of()
    check(ledger, rows, 1, [5, 9])
    assert ledger.look_ahead(1, 3) == Showing(PAGES + 2, 10, 3)
    rows.carry_out([Showing(PAGES + 2, 10, 3)])
    assert ledger.look_ahead(1, 3) is None
    for count in (3, 4, 5):
        first, orders = ledger.place(1, [5, *range(9, 8 + count)])
        assert (first, orders) == (PAGES, [])
    assert ledger.maps == 3
    assert check(ledger, rows, 1, [5, 9, 10, 11, 12, 20]) == PAGES
    assert ledger.look_ahead(1, 100) == Showing(PAGES + 6, 21, 26)  # to the end of the range


def test_looking_ahead_ends_with_the_pool() -> None:
    ledger, rows = ledger_of()
    check(ledger, rows, 1, [5, PAGES - 1])
    assert ledger.look_ahead(1, 3) is None


def test_a_resting_range_with_the_same_beginning_is_taken() -> None:
    ledger, rows = ledger_of()
    check(ledger, rows, 1, [5, 9, 20])
    check(ledger, rows, 2, [5, 9, 30])
    check(ledger, rows, 3, [1, 3])
    ledger.retain(())
    assert ledger.ranges_in_use == 0
    first, orders = ledger.place(4, [5, 9, 30, 31, 40])
    assert first == PAGES + 32
    assert orders == [Showing(first + 3, 31, 1), Showing(first + 4, 40, 1)]
    assert ledger.counters.kept == 3


def test_without_ranges_or_mappings_the_table_must_do() -> None:
    ledger, rows = ledger_of(ranges=1)
    assert check(ledger, rows, 1, [5, 9]) == PAGES
    assert check(ledger, rows, 2, [6, 8]) == NOWHERE
    assert check(ledger, rows, 2, [6, 8]) == NOWHERE
    assert ledger.counters.refused == 1
    ledger.retain((2,))
    assert check(ledger, rows, 2, [6, 8]) == PAGES
    ledger, rows = ledger_of(most=5)
    assert check(ledger, rows, 1, [5, 9]) == PAGES
    assert check(ledger, rows, 2, [6, 8]) == NOWHERE
    assert check(ledger, rows, 1, [5, 9, 12, 14]) == PAGES
    assert check(ledger, rows, 1, [5, 9, 12, 14, 16]) == NOWHERE


def test_resting_ranges_give_their_mappings_up_first() -> None:
    ledger, rows = ledger_of(most=9)
    check(ledger, rows, 1, [5, 9, 20])
    ledger.retain(())
    assert check(ledger, rows, 2, [1, 3, 5, 7, 9, 11]) != NOWHERE
    assert ledger.maps == 7
    assert check(ledger, rows, 3, [1, 3]) == NOWHERE


@pytest.mark.parametrize("length", [32, 33])
def test_sequences_longer_than_a_range_are_read_by_their_tables(length: int) -> None:
    ledger, rows = ledger_of()
    pages = [*range(0, 2 * length, 2)][:length]
    assert (check(ledger, rows, 1, [page % PAGES for page in pages]) == NOWHERE) == (length > 32)
