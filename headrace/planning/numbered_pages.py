"""A pool of pages for simulations: the same counts as the one that serves, whatever page lies beside which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from headrace.memory.page_pool import PagePool


class NumberedPages(PagePool):
    """Hands out whichever page came back last: adjacent pages matter to disks and views, of which a simulation has none.

    What is asked for as a run, kept or cached is never that here, since nothing keeps an index over these pages.
    """

    __slots__ = ("_back", "_fresh")

    def __init__(self, total: int, page_tokens: int) -> None:
        super().__init__(total, page_tokens)
        self._back: list[int] = []  # pages that were held once
        self._fresh = 0  # pages from here on never were

    @property
    def free(self) -> int:
        """Pages that nobody holds, reserved ones included."""
        return self.total - self._fresh + len(self._back)

    @property
    def available(self) -> int:
        """Pages that nobody holds and nobody has been promised."""
        return self.total - self._fresh + len(self._back) - self.reserved

    @property
    def held(self) -> int:
        """Pages with at least one owner."""
        return self._fresh - len(self._back)

    def keep(self, pages: Iterable[int]) -> None:
        """Refused: nothing finds these pages again."""
        raise ValueError("simulated pages have no content to keep")

    def release(self, pages: Sequence[int]) -> int:
        """Take an owner from each of these pages; returns how many have none left."""
        references, back = self._references, self._back
        before = len(back)
        for page in pages:
            left = references[page] - 1
            if left < 0:
                raise ValueError(f"page {page} is free already")
            references[page] = left
            if not left:
                back.append(page)
        return len(back) - before

    def check_integrity(self, holders: Iterable[Sequence[int]] | None = None) -> None:
        """As that of the base. Raises ``AssertionError``. O(pages)."""
        free = [page for page, count in enumerate(self._references) if count == 0]
        if len(free) != self.free or not 0 <= self.reserved <= self.free or set(self._back) - set(free):
            raise AssertionError(f"{len(free)} pages are free, {self.free} are counted and {self.reserved} promised")
        known = Counter(page for pages in holders or () for page in pages)
        if holders is not None and any(known[page] != count for page, count in enumerate(self._references)):
            raise AssertionError("pages and their owners don't agree")

    def _take(self, count: int, after: int | None, want: int) -> list[int]:
        if count <= 0:
            if count < 0:
                raise ValueError(f"can't take {count} pages")
            return []
        back, references = self._back, self._references
        if count == 1 and back:
            page = back.pop()
            references[page] = 1
            return [page]
        again = min(count, len(back))
        pages = back[len(back) - again :]
        del back[len(back) - again :]
        fresh = self._fresh
        pages += range(fresh, fresh + count - again)
        self._fresh = fresh + count - again
        for page in pages:
            references[page] = 1
        return pages
