"""Who holds which page: reference counts, pages cached for later, free runs and reservations, without a byte of content."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence

from headrace.errors import HeadraceError
from headrace.memory.free_runs import FreeRuns, runs_of


class PagePool:
    """The accounting of ``total`` equal pages of ``page_tokens`` token positions each.

    Every page is either blank, or held by one or more owners (a shared prompt, a fork), or cached: nobody holds it, but
    somebody marked its content as worth keeping (:meth:`keep`). Cached pages are as free as blank ones: when those run out,
    the cached page that was let go of first goes to ``on_forget``, which calls :meth:`forget`. ``reserve`` promises free pages
    to an owner without choosing them yet: a whole prompt is reserved when it is admitted, its pages are taken chunk by
    chunk. Wrong use (releasing a free page, taking more than was reserved) raises ``ValueError``: it is a bug in the
    caller, never something a client can cause.

    Pages are handed out in runs of adjacent ones (FastSwitch's block groups). Who takes says which page it has last
    (``after``) and how many more it may want (``want``): it gets the pages behind its own, else the shortest free run that
    holds all of that, else the longest. What it may want is kept back behind it, and is nobody's property: when no other
    page is free, the longest such stretch is cut from its end. An operation on a run costs O(log runs).

    Pages may be out of use for a time (:meth:`withhold`, :meth:`give_back`), because their memory is needed elsewhere.
    ``lasting`` is what the pool has at least once that is over: nobody may need more than that by itself.
    """

    __slots__ = (
        "_cached", "_epochs", "_kept", "_marked", "_open", "_references", "_withheld",
        "lasting", "on_forget", "page_tokens", "reach", "reserved", "total",
    )  # fmt: skip

    def __init__(self, total: int, page_tokens: int) -> None:
        if total < 1:
            raise HeadraceError("invalid_value", f"a page pool needs at least 1 page, not {total}", param="total")
        if page_tokens < 1:
            raise HeadraceError("invalid_value", f"a page holds at least 1 token, not {page_tokens}", param="page_tokens")
        self.total = self.lasting = total
        self.page_tokens = page_tokens
        self.reserved = 0
        self.reach = 0  # pages 0 … reach - 1 are all that was ever taken
        self.on_forget: Callable[[int], object] = self.forget  # gets a cached page whose room is needed
        self._open = FreeRuns()
        self._open.add(0, total)
        self._kept = FreeRuns()  # blank as well; each of these runs lies behind a held page whose owner may want it next
        self._withheld = FreeRuns()
        self._cached: OrderedDict[int, None] = OrderedDict()  # the first one is the first to become blank
        self._marked = bytearray(total)  # 1: the content is worth keeping
        self._references = [0] * total
        self._epochs = [0] * total

    @property
    def free(self) -> int:
        """Pages that nobody holds, cached and reserved ones included."""
        return self._open.count + self._kept.count + len(self._cached)

    @property
    def cached(self) -> int:
        """Pages that nobody holds and whose content is kept until the room is needed."""
        return len(self._cached)

    @property
    def available(self) -> int:
        """Pages that nobody holds and nobody has been promised."""
        return self._open.count + self._kept.count + len(self._cached) - self.reserved

    @property
    def usable(self) -> int:
        """Pages that are not withheld."""
        return self.total - self._withheld.count

    @property
    def held(self) -> int:
        """Pages with at least one owner."""
        return self.usable - self.free

    def pages_for(self, tokens: int) -> int:
        """Pages that hold ``tokens`` positions."""
        return -(-tokens // self.page_tokens)

    def references(self, page: int) -> int:
        """Owners of one page; 0 means blank or cached."""
        return self._references[page]

    def epoch(self, page: int) -> int:
        """How often the page was handed out: who remembers it can tell whether the page still holds what it held then."""
        return self._epochs[page]

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

    def allocate(self, count: int, after: int | None = None, want: int = 0) -> list[int] | None:
        """Take ``count`` pages that are not promised to anyone, all or nothing (``None``).

        ``after``: the owner's last page; ``want``: pages that it may ask for later.
        """
        return self._take(count, after, want) if count <= self.available else None

    def allocate_reserved(self, count: int, after: int | None = None, want: int = 0) -> list[int]:
        """Take ``count`` pages out of an earlier :meth:`reserve`; always succeeds. Arguments as in :meth:`allocate`."""
        if count > self.reserved:
            raise ValueError(f"can't take {count} of {self.reserved} reserved pages")
        self.reserved -= count
        return self._take(count, after, want)

    def share(self, pages: Iterable[int]) -> None:
        """Add an owner to each of these held or cached pages."""
        references, cached = self._references, self._cached
        for page in pages:
            if references[page] == 0:
                if page not in cached:
                    raise ValueError(f"page {page} is blank and can't be shared")
                del cached[page]
            references[page] += 1

    def keep(self, pages: Iterable[int]) -> None:
        """Mark what these held pages hold as worth keeping: they will be cached and not blank when their last owners go."""
        references, marked = self._references, self._marked
        for page in pages:
            if references[page] < 1:
                raise ValueError(f"page {page} is not held and can't be kept")
            marked[page] = 1

    def release(self, pages: Sequence[int]) -> int:
        """Take an owner from each of these pages; returns how many have none left.

        Of the cached ones, those at the end of the list will become blank before those at its beginning.
        """
        references, marked = self._references, self._marked
        free: list[int] = []
        for page in pages:
            left = references[page] - 1
            if left < 0:
                raise ValueError(f"page {page} is free already")
            references[page] = left
            if left == 0:
                free.append(page)
        for page in reversed(free):
            if marked[page]:
                self._cached[page] = None
        for start, length in runs_of(free):
            kept = self._kept.starting(start + length)
            if kept:
                self._kept.take(start + length, kept)
                self._open.add(start + length, kept)
        for start, length in runs_of([page for page in free if not marked[page]]):
            self._open.add(start, length)
        return len(free)

    def forget(self, page: int) -> None:
        """What this page holds is not worth keeping any more: it is blank when nobody holds it."""
        self._marked[page] = 0
        if page in self._cached:
            del self._cached[page]
            self._open.add(page, 1)

    def withhold(self, count: int) -> list[tuple[int, int]]:
        """Take up to ``count`` pages out of use that nobody holds or was promised, cached ones last. Returns the runs."""
        count = max(0, min(count, self.available))
        while self._cached and self._open.count + self._kept.count < count:
            self.on_forget(next(iter(self._cached)))
        taken: list[tuple[int, int]] = []
        while count:
            runs = self._open if self._open.count else self._kept
            start, length = runs.longest()
            length = min(length, count)
            taken.append((runs.take_last(start, length), length))
            self._withheld.add(*taken[-1])
            count -= length
        return taken

    def give_back(self, count: int) -> None:
        """Let up to ``count`` withheld pages be used again."""
        count = min(count, self._withheld.count)
        while count:
            start, length = self._withheld.longest()
            length = min(length, count)
            self._withheld.take(start, length)
            self._open.add(start, length)
            count -= length

    def cached_pages(self) -> Iterable[int]:
        """Cached pages, the first to become blank first."""
        return self._cached.keys()

    def check_integrity(self, holders: Iterable[Sequence[int]] | None = None) -> None:
        """Prove that each page is blank xor cached xor held xor withheld and that counts add up.

        ``holders``, when given, must be the page lists of all owners. Raises ``AssertionError`` naming the first page at fault.
        O(pages).
        """
        runs = sorted((*self._open, *self._kept))
        blank = {page for start, length in runs for page in range(start, start + length)}
        free = blank | self._cached.keys()
        _require(0 <= self.reserved <= len(free), f"{self.reserved} pages reserved of {len(free)} free")
        _require(len(free) == sum(length for _, length in runs) + len(self._cached) == self.free, "a page is free twice")
        away = {page for start, length in self._withheld for page in range(start, start + length)}
        _require(len(away) == self._withheld.count and not away & free, "a page is withheld twice, or free as well")
        for start, _ in self._kept:
            _require(start > 0 and self._references[start - 1] > 0, f"page {start} is kept back for nobody")
        for page, count in enumerate(self._references):
            _require(count >= 0, f"page {page} has {count} owners")
            unused = page in free or page in away
            _require((count == 0) == unused, f"page {page} has {count} owners and free is {page in free}")
            _require(not (self._marked[page] and (page in blank or page in away)), f"page {page} is blank and marked as kept")
            _require(page not in self._cached or self._marked[page] == 1, f"page {page} is cached and not marked as kept")
        _require(free <= set(range(self.total)), "an unknown page is free")
        if holders is not None:
            known = Counter(page for pages in holders for page in pages)
            for page, count in enumerate(self._references):
                _require(known[page] == count, f"page {page} counts {count} owners, {known[page]} hold it")
            _require(sum(known.values()) == sum(self._references), "an owner holds an unknown page")

    def _take(self, count: int, after: int | None, want: int) -> list[int]:
        if count <= 0:
            if count < 0:
                raise ValueError(f"can't take {count} pages")
            return []
        pages: list[int] = []
        following = -1 if after is None else after + 1
        self._make_blank(count, self._kept.starting(following), want)
        while len(pages) < count:
            start, length = self._next_run(following, count - len(pages), want)
            pages += range(start, start + length)
            following = start + length
        ahead = min(want, self._open.starting(following))
        if ahead and not self._kept.starting(following):
            self._open.take(following, ahead)
            self._kept.add(following, ahead)
        references, epochs = self._references, self._epochs
        for page in pages:
            references[page] = 1
            epochs[page] += 1
        self.reach = max(self.reach, 1 + max(pages))
        return pages

    def _make_blank(self, count: int, own: int, want: int) -> None:
        """Have so many blank pages: forget the cached pages that were let go of first.

        When the owner's ``own`` stretch is too short, also as many as it may ``want``, one after the other, so that they are a run
        and not single pages that come free as others are needed; and before other owners' stretches are cut. At most a quarter of
        what is cached goes for that.
        """
        wanted = count + min(want, len(self._cached) // 4) if own < count else 0
        while self._cached and (self._open.count < wanted or self._open.count + self._kept.count < count):
            self.on_forget(next(iter(self._cached)))

    def _next_run(self, following: int, count: int, want: int) -> tuple[int, int]:
        """Take up to ``count`` adjacent pages: from ``following`` on, else from the run that fits best."""
        for runs in (self._kept, self._open):
            length = min(count, runs.starting(following))
            if length:
                runs.take(following, length)
                return following, length
        start, length = self._open.best(count + want)
        kept_start, kept = self._kept.longest()
        if length < count and length < kept:
            length = min(count, kept)
            return self._kept.take_last(kept_start, length), length
        length = min(count, length)
        self._open.take(start, length)
        return start, length


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise AssertionError(problem)
