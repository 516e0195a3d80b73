"""Free pages as runs of adjacent ones, so that a sequence's pages lie side by side and move in few large pieces.

Runs instead of single pages are the block groups of "FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large
Language Model Serving". A run is (start, length).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

_START_BITS = 40  # runs sort by length, then by start: warm pages are used first


class FreeRuns:
    """A set of pages held as maximal runs.

    Finding, adding and taking take O(log runs) comparisons, and moving 8 bytes a run in one sorted list.
    """

    __slots__ = ("_lengths", "_sorted", "_starts", "count")

    def __init__(self) -> None:
        self.count = 0
        self._lengths: dict[int, int] = {}  # by first page
        self._starts: dict[int, int] = {}  # by the page behind the last
        self._sorted: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._lengths.items())

    def starting(self, page: int) -> int:
        """Length of the run that starts at ``page``, 0 when none does."""
        return self._lengths.get(page, 0)

    def longest(self) -> tuple[int, int]:
        """The longest run; (0, 0) when there is none."""
        return self._run(-1) if self._sorted else (0, 0)

    def best(self, length: int) -> tuple[int, int]:
        """The shortest run of at least ``length`` pages, else the longest; (0, 0) when there is none."""
        index = bisect_left(self._sorted, length << _START_BITS)
        return self._run(index) if index < len(self._sorted) else self.longest()

    def add(self, start: int, length: int) -> None:
        """Add pages that are not in the set; they join their neighbours."""
        self.count += length
        before = self._starts.get(start)
        if before is not None:
            length += self._drop(before)
            start = before
        if start + length in self._lengths:
            length += self._drop(start + length)
        self._put(start, length)

    def take(self, start: int, length: int) -> None:
        """Take the first pages of the run that starts at ``start``."""
        left = self._drop(start) - length
        self.count -= length
        if left:
            self._put(start + length, left)

    def take_last(self, start: int, length: int) -> int:
        """Take the last pages of the run that starts at ``start``; returns the first page taken."""
        left = self._drop(start) - length
        self.count -= length
        if left:
            self._put(start, left)
        return start + left

    def _run(self, index: int) -> tuple[int, int]:
        packed = self._sorted[index]
        length = packed >> _START_BITS
        return packed - (length << _START_BITS), length

    def _put(self, start: int, length: int) -> None:
        self._lengths[start] = length
        self._starts[start + length] = start
        insort(self._sorted, length << _START_BITS | start)

    def _drop(self, start: int) -> int:
        length = self._lengths.pop(start)
        del self._starts[start + length]
        del self._sorted[bisect_left(self._sorted, length << _START_BITS | start)]
        return length


def runs_of(pages: Iterable[int]) -> list[tuple[int, int]]:
    """The runs that a list of pages consists of, in its order: a run ends where the next page is not the adjacent one."""
    runs: list[tuple[int, int]] = []
    start = end = -1
    for page in pages:
        if page != end:
            if end > start:
                runs.append((start, end - start))
            start = page
        end = page + 1
    if end > start:
        runs.append((start, end - start))
    return runs
