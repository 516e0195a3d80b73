"""Which rows of addresses show which pages, so that each sequence's pages stand in one row of rows: accounting only.

The idea, deferred reclamation and looking ahead are those of "vAttention: Dynamic Memory Management for Serving LLMs without
PagedAttention". Different here: pages belong to a pool and not to a range, so that sequences share them, and a sequence whose
pages are adjacent in the pool needs no range at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.memory.free_runs import runs_of

NOWHERE = -1


class Showing(NamedTuple):
    """An order: show ``count`` adjacent pages from ``page`` on in the rows from ``row`` on; ``page`` −1: show nothing there."""

    row: int
    page: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs


@dataclass(frozen=True, slots=True)
class ViewLimits:
    """``pages`` of the pool; behind them ``ranges`` of ``range_pages`` rows each. ``strips`` a page lies in.

    ``most_maps``: mappings of the system that all ranges together may take.
    """

    pages: int
    ranges: int
    range_pages: int
    strips: int = 1
    most_maps: int = 32_768


@dataclass(slots=True)
class ViewCounters:
    """What was done so far. ``shown``: pages that had to be shown; ``kept``: pages of a new owner that its range showed already;
    ``ahead``: pages shown before they were needed; ``refused``: sequences that got no range; ``reclaimed``: ranges cleared."""

    shown: int = 0
    kept: int = 0
    ahead: int = 0
    refused: int = 0
    reclaimed: int = 0


@dataclass(slots=True, eq=False)
class _Range:
    """Rows from ``first`` on; row ``first + i`` shows page ``shown[i]``."""

    first: int
    shown: list[int] = field(default_factory=list)
    runs: int = 0


@dataclass(slots=True, eq=False)
class _Owner:
    """``pages`` as they were at the last look; ``straight``: they are adjacent. ``refused_at``: the ledger's age then."""

    pages: list[int] = field(default_factory=list)
    straight: bool = True
    range: _Range | None = None
    refused_at: int = NOWHERE


class ViewLedger:
    """Finds for each sequence a row from which on its pages stand in order.

    An owner's pages may change between two looks in any way. Ranges of owners that have gone keep what they show until another
    needs them: showing a page holds nothing. All methods return orders that must be carried out in their order before the rows
    are read.
    """

    def __init__(self, limits: ViewLimits) -> None:
        self.limits = limits
        self.counters = ViewCounters()
        self.maps = 0
        self._blank = [limits.pages + index * limits.range_pages for index in reversed(range(limits.ranges))]
        self._retired: OrderedDict[int, _Range] = OrderedDict()  # by first row; the first one is the first to go
        self._owners: dict[int, _Owner] = {}
        self._age = 0

    @property
    def ranges_in_use(self) -> int:
        """Ranges that belong to an owner."""
        return self.limits.ranges - len(self._blank) - len(self._retired)

    def retain(self, live: Container[int]) -> None:
        """Owners that are not ``live`` have gone."""
        for owner in [owner for owner in self._owners if owner not in live]:
            self._retire(self._owners.pop(owner))

    def place(self, owner: int, pages: Sequence[int]) -> tuple[int, list[Showing]]:
        """The first row of these pages, and what must be shown before; ``NOWHERE`` when there is no range for them."""
        record = self._owners.get(owner)
        if record is None:
            record = self._owners[owner] = _Owner()
        if record.pages != pages:
            self._look(record, pages)
        if record.straight:
            return record.pages[0], []
        if len(pages) > self.limits.range_pages:  # for good, unless it loses pages: others may have its range
            self._retire(record)
            return self._refuse(record), []
        orders: list[Showing] = []
        if record.range is None:
            if record.refused_at == self._age:
                return NOWHERE, []
            record.range = self._take_range(record.pages)
            if record.range is None:
                return self._refuse(record), orders
        if not self._show(record.range, record.pages, orders):
            self._retire(record)
            return self._refuse(record), orders
        return record.range.first, orders

    def look_ahead(self, owner: int, count: int) -> Showing | None:
        """Show up to ``count`` pages behind the owner's last one, if none is shown yet: it will most likely get these next.

        Reading them is nobody's business before then, and if it gets others they are shown instead.
        """
        record = self._owners.get(owner)
        if record is None or record.range is None or len(record.range.shown) != len(record.pages):
            return None
        shown, limits = record.range.shown, self.limits
        page = shown[-1] + 1
        count = min(count, limits.pages - page, limits.range_pages - len(shown))
        if count < 1:
            return None
        order = Showing(record.range.first + len(shown), page, count)
        shown.extend(range(page, page + count))  # adjacent: no mapping more
        self.counters.ahead += count
        return order

    def forget(self, owner: int) -> list[Showing]:
        """Take an owner's range away and clear it; it gets another when it is placed again."""
        record = self._owners.pop(owner, None)
        if record is None or record.range is None:
            return []
        return [self._clear(record.range)]

    def lose(self, owner: int) -> list[Showing]:
        """What was ordered for this owner could not be shown: it has no range until others give theirs back."""
        orders = self.forget(owner)
        self._refuse(self._owners.setdefault(owner, _Owner()))
        return orders

    def check_integrity(self) -> None:
        """Prove that rows, owners and mappings add up. Raises ``AssertionError``. O(rows shown)."""
        used = [record.range for record in self._owners.values() if record.range is not None]
        every = [*used, *self._retired.values()]
        firsts = sorted([one.first for one in every] + self._blank)
        expected = [self.limits.pages + index * self.limits.range_pages for index in range(self.limits.ranges)]
        assert firsts == expected, "a range is lost, or belongs to two"
        for one in every:
            assert one.runs == len(runs_of(one.shown)), f"range {one.first} counts {one.runs} runs"
            assert len(one.shown) <= self.limits.range_pages, f"range {one.first} shows too much"
        assert self.maps == sum(map(self._maps, every)), "mappings don't add up"
        assert self.maps <= self.limits.most_maps, "more mappings than allowed"
        for owner, record in self._owners.items():
            if record.range is not None and not record.straight:
                assert record.range.shown[: len(record.pages)] == record.pages, f"owner {owner} is shown other pages"

    def _look(self, record: _Owner, pages: Sequence[int]) -> None:
        known = len(record.pages)
        if known and pages[:known] == record.pages:
            record.straight = record.straight and pages[-1] - pages[known - 1] == len(pages) - known and _adjacent(pages, known)
        else:
            record.straight = pages[-1] - pages[0] == len(pages) - 1 and _adjacent(pages, 1)
        record.pages = list(pages)

    def _take_range(self, pages: list[int]) -> _Range | None:
        """A retired range that begins with most of these pages, else a blank one, else the one that was retired first."""
        found, most = None, 0
        for one in self._retired.values():
            if one.shown[0] == pages[0]:
                common = _common(one.shown, pages)
                found, most = (one, common) if common > most else (found, most)
        if found is None and self._blank and (self.maps + 2 * self.limits.strips <= self.limits.most_maps or not self._retired):
            return _Range(self._blank.pop())
        if found is None and self._retired:
            found = next(iter(self._retired.values()))
        if found is None:
            return None
        del self._retired[found.first]
        self.counters.kept += most
        return found

    def _show(self, one: _Range, pages: list[int], orders: list[Showing]) -> bool:
        """Make the range begin with these pages; False when that would take too many mappings."""
        count, shown = len(pages), one.shown
        if shown[:count] == pages:
            return True
        if len(shown) > count and shown[count] != pages[-1] + 1:
            self._cut(one, count, orders)  # an older owner's, or what was expected behind the last page, wrongly
        made = pages + one.shown[count:]
        runs = len(runs_of(made))
        if not self._make_room((runs - one.runs) * self.limits.strips + (0 if one.shown else self.limits.strips), orders):
            return False
        changed = [index for index, page in enumerate(pages) if index >= len(shown) or shown[index] != page]
        for row, length in runs_of(changed):
            orders += [Showing(one.first + row + start, page, size) for start, page, size in _split(pages[row : row + length])]
        self.counters.shown += len(changed)
        self.maps -= self._maps(one)
        one.shown, one.runs = made, runs
        self.maps += self._maps(one)
        return True

    def _cut(self, one: _Range, count: int, orders: list[Showing]) -> None:
        """Clear the rows behind the first ``count``."""
        self.maps -= self._maps(one)
        orders.append(Showing(one.first + count, NOWHERE, len(one.shown) - count))
        del one.shown[count:]
        one.runs = len(runs_of(one.shown))
        self.maps += self._maps(one)

    def _make_room(self, maps: int, orders: list[Showing]) -> bool:
        while self.maps + maps > self.limits.most_maps and self._retired:
            _, oldest = self._retired.popitem(last=False)
            orders.append(self._clear(oldest))
            self.counters.reclaimed += 1
        return self.maps + maps <= self.limits.most_maps

    def _clear(self, one: _Range) -> Showing:
        self.maps -= self._maps(one)
        self._blank.append(one.first)
        self._age += 1
        return Showing(one.first, NOWHERE, max(1, len(one.shown)))

    def _retire(self, record: _Owner) -> None:
        one, record.range = record.range, None
        if one is not None and one.shown:
            self._retired[one.first] = one
        elif one is not None:
            self._blank.append(one.first)
        self._age += one is not None

    def _refuse(self, record: _Owner) -> int:
        if record.refused_at == NOWHERE:
            self.counters.refused += 1
        record.refused_at = self._age
        return NOWHERE

    def _maps(self, one: _Range) -> int:
        """At most so many mappings of the system: one a run, and what is left of the range behind them."""
        return (one.runs + 1) * self.limits.strips if one.shown else 0


def _adjacent(pages: Sequence[int], start: int) -> bool:
    return all(pages[index] == pages[index - 1] + 1 for index in range(start, len(pages)))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        count += 1
    return count


def _split(pages: Sequence[int]) -> list[tuple[int, int, int]]:
    """(place in the list, first page, length) of each run of adjacent pages."""
    split, start = [], 0
    for page, length in runs_of(pages):
        split.append((start, page, length))
        start += length
    return split
