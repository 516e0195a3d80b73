"""Who holds which page: reference counts, a free list and reservations, without a byte of page content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from headrace.errors import HeadraceError


class PagePool:
    """The accounting of ``total`` equal pages of ``page_tokens`` token positions each.

    Every page is either free or held by one or more owners (a shared prompt, a fork). ``reserve`` promises free pages
    to an owner without choosing them yet: a whole prompt is reserved when it is admitted, its pages are taken chunk by
    chunk. All operations cost O(1) a page. Wrong use (releasing a free page, taking more than was reserved) raises
    ``ValueError``: it is a bug in the caller, never something a client can cause.
    """

    __slots__ = ("_free", "_references", "page_tokens", "reach", "reserved", "total")

    def __init__(self, total: int, page_tokens: int) -> None:
        if total < 1:
            raise HeadraceError("invalid_value", f"a page pool needs at least 1 page, not {total}", param="total")
        if page_tokens < 1:
            raise HeadraceError("invalid_value", f"a page holds at least 1 token, not {page_tokens}", param="page_tokens")
        self.total = total
        self.page_tokens = page_tokens
        self.reserved = 0
        self.reach = 0  # pages 0 … reach - 1 are all that was ever taken
        self._free = list(range(total - 1, -1, -1))  # a stack: page 0 goes out first, warm pages are reused first
        self._references = [0] * total

    @property
    def free(self) -> int:
        """Pages that nobody holds, reserved ones included."""
        return len(self._free)

    @property
    def available(self) -> int:
        """Pages that nobody holds and nobody has been promised."""
        return len(self._free) - self.reserved

    @property
    def held(self) -> int:
        """Pages with at least one owner."""
        return self.total - len(self._free)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold ``tokens`` positions."""
        return -(-tokens // self.page_tokens)

    def references(self, page: int) -> int:
        """Owners of one page; 0 means free."""
        return self._references[page]

    def reserve(self, count: int) -> bool:
        """Promise ``count`` free pages, all or nothing."""
        if count < 0:
            raise ValueError(f"can't reserve {count} pages")
        if count > self.available:
            return False
        self.reserved += count
        return True

    def unreserve(self, count: int) -> None:
        """Give up a promise of ``count`` pages."""
        if not 0 <= count <= self.reserved:
            raise ValueError(f"can't give up {count} of {self.reserved} reserved pages")
        self.reserved -= count

    def allocate(self, count: int) -> list[int] | None:
        """Take ``count`` pages that are not promised to anyone, all or nothing (``None``)."""
        return self._take(count) if count <= self.available else None

    def allocate_reserved(self, count: int) -> list[int]:
        """Take ``count`` pages out of an earlier :meth:`reserve`; always succeeds."""
        if count > self.reserved:
            raise ValueError(f"can't take {count} of {self.reserved} reserved pages")
        self.reserved -= count
        return self._take(count)

    def share(self, pages: Iterable[int]) -> None:
        """Add an owner to each of these held pages."""
        references = self._references
        for page in pages:
            if references[page] < 1:
                raise ValueError(f"page {page} is free and can't be shared")
            references[page] += 1

    def release(self, pages: Iterable[int]) -> int:
        """Take an owner from each of these pages; returns how many became free."""
        references, free = self._references, self._free
        before = len(free)
        for page in pages:
            left = references[page] - 1
            if left < 0:
                raise ValueError(f"page {page} is free already")
            references[page] = left
            if left == 0:
                free.append(page)
        return len(free) - before

    def check_integrity(self, holders: Iterable[Sequence[int]] | None = None) -> None:
        """Prove that each page is free xor held and that counts add up; with ``holders``, that owners are exactly these.

        ``holders`` are the page lists of all owners. Raises ``AssertionError`` naming the first page at fault. O(pages).
        """
        _require(0 <= self.reserved <= len(self._free), f"{self.reserved} pages reserved of {len(self._free)} free")
        free = set(self._free)
        _require(len(free) == len(self._free), "a page is in the free list twice")
        for page, count in enumerate(self._references):
            _require(count >= 0, f"page {page} has {count} owners")
            _require((count == 0) == (page in free), f"page {page} has {count} owners and free is {page in free}")
        _require(free <= set(range(self.total)), "the free list has an unknown page")
        if holders is not None:
            known = Counter(page for pages in holders for page in pages)
            for page, count in enumerate(self._references):
                _require(known[page] == count, f"page {page} counts {count} owners, {known[page]} hold it")
            _require(sum(known.values()) == sum(self._references), "an owner holds an unknown page")

    def _take(self, count: int) -> list[int]:
        if count <= 0:
            if count < 0:
                raise ValueError(f"can't take {count} pages")
            return []
        free, references = self._free, self._references
        if count == 1:
            page = free.pop()
            references[page] = 1
            if page >= self.reach:
                self.reach = page + 1
            return [page]
        pages = free[: -count - 1 : -1]
        self.reach = max(self.reach, 1 + max(pages))
        del free[-count:]
        for page in pages:
            references[page] = 1
        return pages


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise AssertionError(problem)
