"""Pages that a disk keeps for prompts to come, also those after the next start: which, where, and what is on its way."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from headrace.memory.page_pool import PagePool
from headrace.memory.prefix_index import PrefixIndex

_PINNED_SHARE = 2  # at most this part of the pool, and of its free pages, waits for the disk
_PATIENCE = 64  # finished sequences for which a disk that takes nothing is left alone


@dataclass(frozen=True, slots=True)
class KeptEntry:
    """What a slot holds: ``name`` is the digest of tenant and all tokens up to the page's end, ``tokens`` are the page's own."""

    slot: int
    name: bytes
    tokens: bytes


@dataclass(slots=True, eq=False)
class KeptJob:
    """Pages of one sequence that are written, or read for item ``owner`` behind the ``found`` first ones, which were there.

    ``left``: pieces that have not ended; ``good``: pages of ``pages`` that hold what they should, counted from the first.
    """

    owner: int
    pages: list[int]
    found: int = 0
    left: int = 0
    good: int = 0
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class KeptPiece:
    """Adjacent pages to write to, or read from, as many adjacent slots. ``index``: the first one's place in the job."""

    job: KeptJob
    index: int
    page: int
    slot: int
    count: int
    writes: bool
    entries: list[KeptEntry] = field(default_factory=list)

    @property
    def slots(self) -> range:
        """The slots it fills or reads."""
        return range(self.slot, self.slot + self.count)


@dataclass(slots=True)
class KeptCounters:
    """What the disk did so far, in pages, pieces and items."""

    written: int = 0
    writes: int = 0
    read: int = 0
    reads: int = 0
    came: int = 0
    failures: int = 0


class KeptPages:
    """The disk tier of a prefix index: accounting only, one thread; :class:`headrace.memory.kept_file.KeptFile` has the bytes.

    A sequence that ends or has grown is put in line; when the disk is idle its pages that are not kept yet are written, in runs.
    These pages stay in the pool meanwhile, at most half of what is free. A page is found again by its name and its tokens. The
    slots are a page pool of their own: what was used longest ago goes first, ends before beginnings.
    """

    def __init__(self, index: PrefixIndex, pool: PagePool, slots: int, run_pages: int = 16) -> None:
        self.pool = pool
        self.slots = PagePool(slots, pool.page_tokens)
        self.slots.on_forget = self._forget_slot
        self.counters = KeptCounters()
        self.arrived: list[KeptJob] = []
        self._index = index
        self._run_pages = run_pages
        self._by_name: dict[bytes, KeptEntry] = {}
        self._by_slot: dict[int, KeptEntry] = {}
        self._line: deque[tuple[str, int, int]] = deque(maxlen=1024)
        self._reads: deque[KeptPiece] = deque()
        self._writes: deque[KeptPiece] = deque()
        self._under_way: dict[int, KeptPiece] = {}
        self._jobs: dict[int, KeptJob] = {}
        self._readers: dict[int, KeptJob] = {}
        self._named: tuple[str, int, int, list[KeptEntry]] = "", -1, -1, []
        self._patience = 0

    @property
    def carrying(self) -> bool:
        """True when pages of a sequence are being carried or wait to be."""
        return bool(self._jobs)

    @property
    def busy(self) -> bool:
        """True when there is anything to carry, also of sequences that are only in line."""
        return bool(self._jobs or self._line)

    @property
    def pages_under_way(self) -> int:
        """Pages that are being carried."""
        return sum(piece.count for piece in self._under_way.values())

    @property
    def stored(self) -> int:
        """Pages that the disk keeps."""
        return len(self._by_slot)

    def restore(self, entries: Iterable[KeptEntry]) -> None:
        """Take over what an earlier process has kept, the oldest first. Call once, before anything else."""
        by_slot = {entry.slot: entry for entry in entries if 0 <= entry.slot < self.slots.total}
        self.slots.allocate(self.slots.total)
        blank = []
        for slot in range(self.slots.total):
            entry = by_slot.get(slot)
            if entry is None or entry.name in self._by_name:
                by_slot.pop(slot, None)
                blank.append(slot)
            else:
                self._enter(entry)
        self.slots.release(blank)
        for slot in by_slot:
            self.slots.release((slot,))

    def find(self, item: int, tenant: str, tokens: Sequence[int], known: int, most: int) -> list[int]:
        """Slots of the pages ``known`` … of a prompt, as many in a row as are kept, at most up to page ``most``."""
        if not self._by_name or known >= most:
            return []
        if self._named[:3] != (tenant, item, most):
            self._named = tenant, item, most, name_pages(tenant, self._index.pack(tokens, 0, most), self.pool.page_tokens)
        slots = []
        for wanted in self._named[3][known:]:
            entry = self._by_name.get(wanted.name)
            if entry is None or entry.tokens != wanted.tokens:
                break
            slots.append(entry.slot)
        return slots

    def come(self, owner: int, found: list[int], fresh: list[int], slots: list[int]) -> None:
        """Fill ``fresh`` pages of an item from ``slots``; it stands in ``arrived`` when that is done, well or not."""
        job = KeptJob(owner, [*found, *fresh], len(found), good=len(found) + len(fresh))
        self.slots.share(slots)
        self._begin(job, self._pieces(job, list(range(len(found), job.good)), slots, writes=False))
        self._readers[owner] = job

    def forget(self, owner: int) -> None:
        """The item is no longer wanted. Its pages are free at once, but for those that are just being filled."""
        job = self._readers.pop(owner, None)
        if job is None:
            return
        job.cancelled = True
        for piece in [piece for piece in self._reads if piece.job is job]:
            self._reads.remove(piece)
            self.slots.release(piece.slots)
            job.left -= 1
        self._end_if_done(job)

    def rename(self, owner: int, heir: int) -> None:
        """Another item takes over what is coming."""
        job = self._readers.pop(owner, None)
        if job is not None:
            job.owner = heir
            self._readers[heir] = job

    def ended(self, tenant: str, pages: Sequence[int]) -> None:
        """A sequence has ended; all ``pages`` are known. They will be written when the disk has time, if they are still there."""
        if self._patience > 0:
            self._patience -= 1
        elif pages:
            self._line.append((tenant, pages[-1], self.pool.epoch(pages[-1])))

    def grown(self, tenant: str, page: int) -> None:
        """A sequence that goes on has filled pages up to ``page``, which is known. They are written like those of one that ends."""
        if not self._patience:
            self._line.append((tenant, page, self.pool.epoch(page)))

    def issue(self, most_pages: int, *, writes: bool = True) -> list[KeptPiece]:
        """Pieces to carry now, at most ``most_pages`` under way (but at least one piece); writes only while nothing is read."""
        issued: list[KeptPiece] = []
        room = most_pages - self.pages_under_way
        while True:
            if writes and not self._reads and not self._writes and not self._readers:
                self._begin_writing()
            queue = self._reads or (self._writes if writes and not self._readers else self._reads)
            if not queue or (self._under_way and queue[0].count > room):
                return issued
            piece = queue.popleft()
            room -= piece.count
            self._under_way[id(piece)] = piece
            issued.append(piece)

    def done(self, piece: KeptPiece, *, carried: bool) -> None:
        """A piece has ended; not ``carried``: its bytes did not make it."""
        del self._under_way[id(piece)]
        job, counters = piece.job, self.counters
        job.left -= 1
        if carried and piece.writes:
            counters.written, counters.writes = counters.written + piece.count, counters.writes + 1
            for entry in piece.entries:
                if entry.name not in self._by_name:
                    self._enter(entry)
        elif carried:
            counters.read, counters.reads = counters.read + piece.count, counters.reads + 1
        else:
            counters.failures += 1
            job.good = min(job.good, piece.index)
            if piece.writes:
                self._give_up_writing()
            for slot in piece.slots if not piece.writes else ():
                self._drop(slot)
        self.slots.release(piece.slots)
        self._end_if_done(job)

    def holders(self) -> Iterator[list[int]]:
        """Page lists that this ledger owns, for the pool's integrity check."""
        for job in self._jobs.values():
            yield job.pages

    def coming(self, owner: int) -> bool:
        """True while pages are being read for the item."""
        return owner in self._readers

    def check_integrity(self) -> None:
        """Prove that slots and names add up. Raises ``AssertionError``. O(slots)."""
        self.slots.check_integrity([list(piece.slots) for piece in (*self._reads, *self._writes, *self._under_way.values())])
        assert set(self._by_name.values()) == set(self._by_slot.values()), "a kept page has two names or none"
        assert all(entry.slot == slot for slot, entry in self._by_slot.items()), "a kept page lies elsewhere"
        assert set(self.slots.cached_pages()) <= self._by_slot.keys(), "a slot holds something without a name"

    def _begin(self, job: KeptJob, pieces: Iterable[KeptPiece]) -> None:
        for piece in pieces:
            (self._writes if piece.writes else self._reads).append(piece)
            job.left += 1
        self._jobs[id(job)] = job

    def _end_if_done(self, job: KeptJob) -> None:
        if job.left or self._jobs.pop(id(job), None) is None:
            return
        if job.owner < 0 or job.cancelled:
            self.pool.release(job.pages)
        else:
            del self._readers[job.owner]
            self.counters.came += job.good > job.found
            self.arrived.append(job)

    def _begin_writing(self) -> None:
        """Take the next sequence in line that has something to be written; its pages have the job as an owner till it ends."""
        while self._line and not self._jobs:
            tenant, last, epoch = self._line.popleft()
            if self.pool.epoch(last) != epoch or self._index.known[last] is None:
                continue
            pages, tokens = self._index.spell(last)
            names = name_pages(tenant, tokens, self.pool.page_tokens)[: len(pages)]
            self._renew(names)
            first = next((index for index, name in enumerate(names) if name.name not in self._by_name), len(names))
            held, names = self._affordable(pages[first:]), names[first:]
            if held is None:  # whoever runs may need them
                self._line.appendleft((tenant, last, epoch))
                return
            missing = [index for index, name in enumerate(names[: len(held)]) if name.name not in self._by_name]
            slots = self.slots.allocate(len(missing)) if missing else None
            if not slots:
                continue
            self.pool.share(held)
            job = KeptJob(-1, held)
            pieces = list(self._pieces(job, missing, slots, writes=True))
            for piece in pieces:
                wanted = names[piece.index : piece.index + piece.count]
                piece.entries = [KeptEntry(slot, one.name, one.tokens) for slot, one in zip(piece.slots, wanted, strict=True)]
            self._begin(job, pieces)

    def _affordable(self, pages: list[int]) -> list[int] | None:
        """As many of the pages as may stay in the pool till they are written; ``None``: not now."""
        pinned = sum(self.pool.references(page) == 0 for page in pages)
        excess = pinned - self.pool.lasting // _PINNED_SHARE
        if excess > 0:
            pages, pinned = pages[:-excess], pinned - excess
        return pages if pinned <= self.pool.available // _PINNED_SHARE else None

    def _renew(self, names: list[KeptEntry]) -> None:
        """What a sequence that ends began with was used just now."""
        slots = [self._by_name[one.name].slot for one in names if one.name in self._by_name]
        self.slots.share(slots)
        self.slots.release(slots)

    def _pieces(self, job: KeptJob, indices: list[int], slots: list[int], *, writes: bool) -> Iterator[KeptPiece]:
        piece: KeptPiece | None = None
        for index, slot in zip(indices, slots, strict=True):
            page = job.pages[index]
            if piece is not None:
                place = piece.index + piece.count, piece.page + piece.count, piece.slot + piece.count
                if piece.count < self._run_pages and place == (index, page, slot):
                    piece.count += 1
                    continue
                yield piece
            piece = KeptPiece(job, index, page, slot, 1, writes)
        if piece is not None:
            yield piece

    def _give_up_writing(self) -> None:
        """The disk takes nothing: what is in line is not written, nor is what ends next."""
        self._patience = _PATIENCE
        self._line.clear()
        while self._writes:
            piece = self._writes.popleft()
            self.slots.release(piece.slots)
            piece.job.left -= 1

    def _enter(self, entry: KeptEntry) -> None:
        self._by_name[entry.name] = self._by_slot[entry.slot] = entry
        self.slots.keep((entry.slot,))

    def _drop(self, slot: int) -> None:
        entry = self._by_slot.pop(slot, None)
        if entry is not None:
            del self._by_name[entry.name]
        self.slots.forget(slot)

    def _forget_slot(self, slot: int) -> None:
        self._drop(slot)


def name_pages(tenant: str, tokens: bytes, page_tokens: int) -> list[KeptEntry]:
    """Names of the full pages of a tenant's sequence; slots are −1. ``tokens``: 32-bit numbers.

    16 bytes a page name tenant and all tokens up to its end, in every process and for ever.
    """
    size = 4 * page_tokens
    name = hashlib.blake2b(tenant.encode(), digest_size=16, person=b"headrace tenant").digest()
    entries = []
    for start in range(0, len(tokens) - size + 1, size):
        own = tokens[start : start + size]
        name = hashlib.blake2b(name + own, digest_size=16, person=b"headrace page").digest()
        entries.append(KeptEntry(-1, name, own))
    return entries
