"""Moves: sequences leave the page pool for a lower tier and come back, run by run, with one owner record each.

The states and epochs are those of live migration in "Llumnix: Dynamic Scheduling for Large Language Model Serving"; the runs, the
clean copies and the rescue are those of "FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language
Model Serving". Accounting only: somebody else carries the bytes (:mod:`headrace.memory.mover`) and reports back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from headrace.memory.lodging import NOWHERE, Lodging, MoveState, Transfer
from headrace.memory.page_pool import PagePool


@dataclass(frozen=True, slots=True)
class _Copy:
    """The tier holds the first ``tokens`` positions of a resident page, as long as the page's epoch is this one."""

    slot: int
    epoch: int
    tokens: int


@dataclass(frozen=True, slots=True)
class MoveOptions:
    """How sequences move. ``slots``: pages that the tier holds. ``run_pages``: most adjacent pages in one piece.

    ``reuse``: pages that the tier holds already are not written again.
    """

    slots: int
    run_pages: int = 16
    reuse: bool = True


@dataclass(slots=True)
class MoveCounters:
    """What was moved so far. ``reused``: pages that left without being written; ``rescued``: pages that came back without
    being read; ``rescues``: sequences that came back without any copy."""

    left: int = 0
    came: int = 0
    written: int = 0
    writes: int = 0
    read: int = 0
    reads: int = 0
    reused: int = 0
    rescued: int = 0
    rescues: int = 0
    lost: int = 0


class Moves:
    """The ledger of one pool and one tier below it. One thread only.

    A page that a piece under way reads or fills has the piece as an owner, so that nobody else gets it before the piece is
    done, whatever happens to its sequence meanwhile. The same holds for slots.
    """

    def __init__(self, pool: PagePool, options: MoveOptions) -> None:
        self.pool = pool
        self.options = options
        self.slots = PagePool(options.slots, pool.page_tokens)
        self.counters = MoveCounters()
        self.arrived: list[tuple[int, list[int]]] = []
        self.lost: list[int] = []
        self.leaving_pages = 0
        self._lodgings: dict[int, Lodging] = {}
        self._copies: dict[int, _Copy] = {}
        self._reads: deque[Transfer] = deque()
        self._writes: deque[Transfer] = deque()
        self._under_way: dict[int, Transfer] = {}
        self.pages_under_way = 0

    @property
    def busy(self) -> bool:
        """True when something is being carried or waits to be."""
        return bool(self._under_way or self._reads or self._writes)

    @property
    def under_way(self) -> int:
        """Pieces that are being carried."""
        return len(self._under_way)

    @property
    def coming_pages(self) -> int:
        """Pages that sequences on their way back still lack."""
        return sum(one.left for one in self._lodgings.values() if one.state is MoveState.COMING)

    @property
    def stored_pages(self) -> int:
        """Slots in use, clean copies included."""
        return self.slots.held

    def find(self, owner: int) -> Lodging | None:
        """The record of a sequence that is not resident."""
        return self._lodgings.get(owner)

    def resident(self, owner: int) -> int:
        """Pages that a sequence still has in the pool though it has left."""
        lodging = self._lodgings.get(owner)
        return 0 if lodging is None else sum(page >= 0 for page in lodging.pages)

    def dirty(self, pages: list[int], tokens: int) -> int:
        """Pages of a resident sequence that would have to be written if it left."""
        return sum(
            self.pool.references(page) == 1 and not self._is_clean(page, self._filled(index, tokens))
            for index, page in enumerate(pages[: self.pool.pages_for(tokens)])
        )

    def leave(self, owner: int, pages: list[int], tokens: int) -> bool:
        """The sequence gives up ``pages``, of which ``tokens`` positions are computed; False when the tier has no room.

        Shared pages stay, with a reference for the sequence. Pages that the tier holds already are free at once, the others
        when they are written.
        """
        used = self.pool.pages_for(tokens)
        private = [index for index in range(used) if self.pool.references(pages[index]) == 1]
        dirty = [index for index in private if not self._is_clean(pages[index], self._filled(index, tokens))]
        slots = self._take_slots(len(dirty), frozenset(pages))
        if slots is None:
            return False
        lodging = Lodging(owner, tokens, pages[:used], [NOWHERE] * used, left=len(dirty))
        self._lodgings[owner] = lodging
        self.pool.release(pages[used:])
        for index, slot in zip(dirty, slots, strict=True):
            lodging.slots[index] = slot
            self._forget_copy(pages[index])
        self._part_with_clean(lodging)
        self._writes.extend(self._pieces(lodging, dirty, writes=True))
        self.leaving_pages += len(dirty)
        self.counters.left += 1
        if not dirty:
            lodging.state = MoveState.AWAY
        return True

    def missing(self, owner: int) -> int:
        """Pages that the sequence needs before it can come back."""
        return sum(page < 0 for page in self._lodgings[owner].pages)

    def come(self, owner: int, fresh: list[int]) -> list[int] | None:
        """Bring a sequence back into ``fresh`` pages, as many as are :meth:`missing`; its pages when nothing need be read.

        Otherwise (``None``) it stands in ``arrived`` or ``lost`` one day. Writes that have not begun are dropped.
        """
        lodging = self._lodgings[owner]
        self._stop_leaving(lodging)
        lodging.epoch += 1
        lodging.state = MoveState.COMING
        missing = [index for index, page in enumerate(lodging.pages) if page < 0]
        for index, page in zip(missing, fresh, strict=True):
            lodging.pages[index] = page
        lodging.left = len(missing)
        rescued = len(lodging.pages) - len(missing)
        self.counters.rescued += rescued
        self.counters.came += 1
        if missing or lodging.sealing is not None:
            self._reads.extend(self._pieces(lodging, missing, writes=False))
            return None
        self.counters.rescues += 1
        del self._lodgings[owner]
        return lodging.pages

    def forget(self, owner: int) -> int:
        """The sequence is no longer wanted, or will be computed anew; returns the pages of the pool that became free."""
        lodging = self._lodgings.pop(owner, None)
        if lodging is None:
            return 0
        self._stop_leaving(lodging)
        lodging.epoch += 1
        self.slots.release([slot for slot in lodging.slots if slot >= 0])
        return self.pool.release([page for page in lodging.pages if page >= 0])

    def rename(self, owner: int, heir: int) -> None:
        """Another sequence takes over what has left."""
        lodging = self._lodgings.pop(owner, None)
        if lodging is not None:
            lodging.owner = heir
            self._lodgings[heir] = lodging

    def truncated(self, page: int, tokens: int) -> None:
        """Only the first ``tokens`` positions of a resident page are still what the tier may hold; the rest is written anew."""
        copy = self._copies.get(page)
        if copy is not None and copy.tokens > tokens:
            self._copies[page] = _Copy(copy.slot, copy.epoch, tokens)

    def issue(self, most_pages: int) -> list[Transfer]:
        """Pieces to carry now, so that at most ``most_pages`` (but at least one) are under way; reads go first.

        A piece that is longer than that is cut, and its rest waits.
        """
        issued: list[Transfer] = []
        while queue := self._reads or self._writes:
            if queue[0].epoch != queue[0].lodging.epoch:
                queue.popleft()
                continue
            if self._under_way and self.pages_under_way + queue[0].count > most_pages:
                break
            transfer = queue[0].take(max(1, most_pages))
            if transfer is queue[0]:
                queue.popleft()
            self.pool.share(transfer.pages)
            self.slots.share(transfer.slots)
            self._under_way[id(transfer)] = transfer
            self.pages_under_way += transfer.count
            lodging = transfer.lodging
            if transfer.writes and transfer.index + transfer.count == len(lodging.pages) and lodging.tokens % self.pool.page_tokens:
                lodging.sealing = transfer
            issued.append(transfer)
        return issued

    def done(self, transfer: Transfer, *, carried: bool) -> None:
        """A piece has ended; not ``carried``: its bytes did not make it."""
        del self._under_way[id(transfer)]
        self.pages_under_way -= transfer.count
        lodging = transfer.lodging
        current = transfer.epoch == lodging.epoch
        if transfer.writes:
            self._written(transfer, current, carried)
        else:
            self._read(transfer, current, carried)
        self.slots.release(transfer.slots)
        self.pool.release(transfer.pages)
        if lodging.sealing is transfer:
            lodging.sealing = None
        if transfer.writes and not current:
            again = self._lodgings.get(lodging.owner)
            if again is not None and again.state is not MoveState.COMING:
                self._part_with_clean(again)
        if current and not carried:
            self._lose(lodging)
        elif self._lodgings.get(lodging.owner) is lodging and self._is_filled(lodging):
            self.arrived.append((lodging.owner, lodging.pages))
            del self._lodgings[lodging.owner]

    def holders(self) -> Iterator[list[int]]:
        """Page lists that this ledger owns, for the pool's integrity check."""
        for lodging in self._lodgings.values():
            yield [page for page in lodging.pages if page >= 0]
        for transfer in self._under_way.values():
            yield list(transfer.pages)

    def check_integrity(self) -> None:
        """Prove that slots add up. Raises ``AssertionError``. O(slots)."""
        holders = [[slot for slot in lodging.slots if slot >= 0] for lodging in self._lodgings.values()]
        holders += [list(transfer.slots) for transfer in self._under_way.values()]
        holders.append([copy.slot for copy in self._copies.values()])
        self.slots.check_integrity(holders)
        leaving = sum(one.left for one in self._lodgings.values() if one.state is MoveState.LEAVING)
        assert leaving == self.leaving_pages, f"{leaving} pages are leaving, {self.leaving_pages} are counted"
        for lodging in self._lodgings.values():
            placed = all(page >= 0 or slot >= 0 for page, slot in zip(lodging.pages, lodging.slots, strict=True))
            assert placed, f"sequence {lodging.owner} has lost a page"

    def _written(self, transfer: Transfer, current: bool, carried: bool) -> None:
        if not carried:
            return
        self.counters.written += transfer.count
        self.counters.writes += 1
        lodging = transfer.lodging
        if current:
            for offset, page in enumerate(transfer.pages):
                lodging.pages[transfer.index + offset] = NOWHERE
                self.pool.release((page,))
            lodging.left -= transfer.count
            self.leaving_pages -= transfer.count
            if lodging.left == 0:
                lodging.state = MoveState.AWAY
            return
        for offset, (page, slot) in enumerate(zip(transfer.pages, transfer.slots, strict=True)):
            if self.pool.references(page) > 1:  # somebody still wants it: the work was not in vain
                self.slots.share((slot,))
                self._remember(page, slot, self._filled(transfer.index + offset, transfer.tokens))

    def _read(self, transfer: Transfer, current: bool, carried: bool) -> None:
        if not (current and carried):
            return
        self.counters.read += transfer.count
        self.counters.reads += 1
        lodging = transfer.lodging
        for offset, (page, slot) in enumerate(zip(transfer.pages, transfer.slots, strict=True)):
            index = transfer.index + offset
            lodging.slots[index] = NOWHERE
            self._remember(page, slot, self._filled(index, transfer.tokens))
        lodging.left -= transfer.count

    def _lose(self, lodging: Lodging) -> None:
        self.forget(lodging.owner)
        self.counters.lost += 1
        self.lost.append(lodging.owner)

    def _stop_leaving(self, lodging: Lodging) -> None:
        """Pages not yet written stay valid, and their slots are given up."""
        if lodging.state is not MoveState.LEAVING:
            return
        self.leaving_pages -= lodging.left
        for index, page in enumerate(lodging.pages):
            if page >= 0 and lodging.slots[index] >= 0:
                self.slots.release((lodging.slots[index],))
                lodging.slots[index] = NOWHERE

    def _part_with_clean(self, lodging: Lodging) -> None:
        """Pages whose content the tier holds are free at once."""
        for index, page in enumerate(lodging.pages):
            if page < 0 or lodging.slots[index] >= 0 or self.pool.references(page) > 1:
                continue
            if self._is_clean(page, self._filled(index, lodging.tokens)):
                lodging.slots[index] = self._copies.pop(page).slot
                lodging.pages[index] = NOWHERE
                self.pool.release((page,))
                self.counters.reused += 1

    def _pieces(self, lodging: Lodging, indices: list[int], *, writes: bool) -> Iterator[Transfer]:
        """Transfers for these pages of a sequence: adjacent pages to adjacent slots in one piece."""
        piece: Transfer | None = None
        for index in indices:
            page, slot = lodging.pages[index], lodging.slots[index]
            if piece is not None:
                place = piece.index + piece.count, piece.page + piece.count, piece.slot + piece.count
                if piece.count < self.options.run_pages and place == (index, page, slot):
                    piece.count += 1
                    continue
                yield piece
            piece = Transfer(lodging, lodging.epoch, index, page, slot, 1, writes, lodging.tokens)
        if piece is not None:
            yield piece

    def _is_filled(self, lodging: Lodging) -> bool:
        return lodging.state is MoveState.COMING and lodging.left == 0 and lodging.sealing is None

    def _filled(self, index: int, tokens: int) -> int:
        """Positions that page ``index`` of a sequence of ``tokens`` holds."""
        size = self.pool.page_tokens
        return min(size, tokens - index * size)

    def _is_clean(self, page: int, filled: int) -> bool:
        copy = self._copies.get(page)
        return copy is not None and copy.epoch == self.pool.epoch(page) and copy.tokens >= filled

    def _remember(self, page: int, slot: int, filled: int) -> None:
        """The tier holds this page's first ``filled`` positions in ``slot``, one reference of which is passed over."""
        self._forget_copy(page)
        if self.options.reuse:
            self._copies[page] = _Copy(slot, self.pool.epoch(page), filled)
        else:
            self.slots.release((slot,))

    def _forget_copy(self, page: int) -> None:
        copy = self._copies.pop(page, None)
        if copy is not None:
            self.slots.release((copy.slot,))

    def _take_slots(self, count: int, spared: frozenset[int]) -> list[int] | None:
        """Slots for pages to be written; clean copies of other pages make room when there is none, outdated ones first."""
        if count > self.slots.available:
            for page in [page for page, copy in self._copies.items() if copy.epoch != self.pool.epoch(page)]:
                self._forget_copy(page)
        if count > self.slots.available:
            for page in [page for page in self._copies if page not in spared]:
                self._forget_copy(page)
                if count <= self.slots.available:
                    break
        return self.slots.allocate(count)
