"""Presence of adapters as a precondition of running: which of them items need, have and wait for. No I/O, no clock.

"S-LoRA: Serving Thousands of Concurrent LoRA Adapters" (Sheng et al.) keeps adapters in the pages of keys and values and
fetches those of the queue ahead. Here an item takes the pages of its prompt and of its adapters in one go or not at all, so that
nobody ever holds some while it waits for others: loads always end, whoever else waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from headrace.errors import HeadraceError
from headrace.memory.adapter_store import AdapterRecord, AdapterState, AdapterStore
from headrace.memory.page_pool import PagePool
from headrace.scheduling.clustering import ABSENT, RESIDENT, RUNS
from headrace.scheduling.item import Item

_MOST_KEPT = 2  # at most this part of the pool is kept for adapters whatever happens


class AdapterPresence:
    """The adapters of one scheduler's items, over the accounting of a store.

    ``to_load``: generations that have got pages and are to be read; whoever reads them takes them off the list and says
    :meth:`loaded` or :meth:`failed`. ``arrived``: items that were admitted and now have all their adapters.
    """

    __slots__ = ("_claims", "_coming", "_held", "_kept", "_pool", "_wanted", "arrived", "failures", "loads", "store", "to_load")

    def __init__(self, pool: PagePool) -> None:
        self.store = AdapterStore(pool)
        self.to_load: list[int] = []
        self.arrived: list[int] = []
        self.loads = 0
        self.failures = 0
        self._pool = pool
        self._held: dict[int, tuple[int, ...]] = {}  # by item: all generations that it was admitted with
        self._coming: dict[int, set[int]] = {}  # by item: those of them that are being loaded
        self._claims: dict[int, int] = {}  # by generation: admitted items
        self._kept: set[int] = set()  # held in memory because an operator says so
        self._wanted: deque[int] = deque()  # to be fetched ahead

    @property
    def in_use(self) -> bool:
        """True when any admitted item has adapters."""
        return bool(self._held)

    def is_kept(self, generation: int) -> bool:
        """True when an operator has pinned it."""
        return generation in self._kept

    def is_coming(self, item_id: int) -> bool:
        """True when an admitted item waits for an adapter."""
        return item_id in self._coming

    def check(self, item: Item) -> None:
        """Refuse what can never run. Raises ``adapter_not_found``, or ``invalid_value`` with the numbers."""
        records = []
        for generation, _ in item.adapters:
            record = self.store.known(generation)
            if record is None:
                raise HeadraceError("adapter_not_found", f"adapter generation {generation} is gone", param="model")
            records.append(record)
        self._check_fits(item, self._kept | {record.generation for record in records}, "request")

    def enter(self, item: Item) -> None:
        """An item is live from now on: its generations stay, and are fetched ahead where there is room."""
        for generation, _ in item.adapters:
            self.store.wait(generation)
            if not self.store.get(generation).pages:
                self._wanted.append(generation)

    def leave(self, item: Item) -> None:
        """The item is no longer live; what it held was released before."""
        for generation, _ in item.adapters:
            self.store.unwait(generation)

    def room(self, item: Item) -> int:
        """Pages that the item may take for itself: free ones and those of idle adapters, less what its own adapters take."""
        room = self._pool.available
        if self.store.resident_pages or item.adapters:
            room += self.store.evictable
            for generation, _ in item.adapters:
                record = self.store.get(generation)
                if record.state in (AdapterState.REGISTERED, AdapterState.RESIDENT):
                    room -= record.size
        return room

    def pages_with(self, item: Item) -> int:
        """Pages of all adapters that are in use once the item runs."""
        if not (self._claims or self._kept or item.adapters):
            return 0
        used = self._claims.keys() | self._kept | {generation for generation, _ in item.adapters}
        return sum(self.store.get(generation).size for generation in used)

    def new_pages(self, item: Item) -> int:
        """Pages of the item's adapters that nobody who is admitted uses: what steps will read beside the others."""
        claims = self._claims
        return sum(self.store.get(generation).size for generation, _ in item.adapters if generation not in claims)

    def place(self, item: Item) -> int:
        """Where the item's adapters are, for :meth:`~headrace.scheduling.clustering.Clustering.choose`."""
        if all(generation in self._claims for generation, _ in item.adapters):
            return RUNS
        return RESIDENT if all(self.store.get(generation).pages for generation, _ in item.adapters) else ABSENT

    def claim(self, item: Item, count: int) -> None:
        """Admit an item that has the :meth:`room`: ``count`` pages are available after this, its adapters resident or loading."""
        if not item.adapters:
            if count > self._pool.available:
                self._make_room(count)
            return
        registered = []
        coming = set()
        for generation, _ in item.adapters:
            record = self.store.get(generation)
            self._claims[generation] = self._claims.get(generation, 0) + 1
            if record.state is AdapterState.REGISTERED:
                registered.append(record)
            if record.loading or not record.pages:
                coming.add(generation)
            else:
                self.store.pin(generation)
        self._make_room(count + sum(record.size for record in registered))
        for record in registered:
            self._begin(record)
        self._held[item.item_id] = tuple(generation for generation, _ in item.adapters)
        if coming:
            self._coming[item.item_id] = coming

    def join(self, item: Item) -> None:
        """Another item with adapters that are all resident starts at once (a fork)."""
        if item.adapters:
            self.claim(item, 0)

    def release(self, item: Item) -> None:
        """The item lets go of its adapters: it ends, or has to wait again. Does nothing for items that hold none."""
        held = self._held.pop(item.item_id, None)
        if held is None:
            return
        coming = self._coming.pop(item.item_id, set())
        for generation in held:
            self._claims[generation] -= 1
            if not self._claims[generation]:
                del self._claims[generation]
            if generation not in coming:
                self.store.unpin(generation)

    def inherit(self, item: Item, heir: Item) -> None:
        """``heir``, with the same adapters, gets what ``item`` holds or waits for."""
        if item.item_id in self._held:
            self._held[heir.item_id] = self._held.pop(item.item_id)
        if item.item_id in self._coming:
            self._coming[heir.item_id] = self._coming.pop(item.item_id)

    def make_page(self) -> bool:
        """Have one page available for a running item, by evicting idle adapters."""
        return bool(self.store.resident_pages) and self.store.make_room(1)

    def fetch_ahead(self) -> None:
        """Begin to load adapters of queued items, as long as the store's share for that allows; in order of arrival."""
        while self._wanted:
            record = self.store.known(self._wanted[0])
            if record is not None and record.waiting and not record.pages:
                if self.store.begin_load(record.generation, ahead=True) is None:
                    return
                self.to_load.append(record.generation)
            self._wanted.popleft()

    def loaded(self, generation: int) -> None:
        """The numbers of a generation are in its pages."""
        self.store.finish_load(generation)
        self.loads += 1
        if generation in self._kept:
            self.store.pin(generation)
        for item_id in [item_id for item_id, coming in self._coming.items() if generation in coming]:
            self.store.pin(generation)
            self._coming[item_id].remove(generation)
            if not self._coming[item_id]:
                del self._coming[item_id]
                self.arrived.append(item_id)

    def failed(self, generation: int) -> None:
        """The numbers of a generation can't be read. Items that need it must have been removed before."""
        self._kept.discard(generation)
        self.store.abandon_load(generation)
        self.failures += 1

    def keep(self, record: AdapterRecord, items: Iterable[Item]) -> None:
        """Hold an adapter in memory until :meth:`unkeep`. Raises as :meth:`check_keep`."""
        if record.generation in self._kept:
            return
        self.check_keep(record.size, items, 0 if record.pages else record.size)
        if record.state is AdapterState.REGISTERED:
            self._make_room(record.size)
            self._begin(record)
        elif not record.loading:
            self.store.pin(record.generation)
        self._kept.add(record.generation)

    def check_keep(self, size: int, items: Iterable[Item], missing: int) -> None:
        """Whether ``size`` more pages may be kept, ``missing`` of them not there yet. ``items``: all live ones, which must still be
        able to run. Raises ``invalid_value`` when they are not, when too much would be kept, or when there is no room now.
        """
        kept = sum(self.store.get(generation).size for generation in self._kept) + size
        if kept > self._pool.lasting // _MOST_KEPT:
            message = f"pinned adapters would take {kept} pages, at most half of the pool's {self._pool.lasting} may be pinned"
            raise HeadraceError("invalid_value", message, param="pinned")
        for item in items:
            own = {generation for generation, _ in item.adapters}
            self._check_fits(item, self._kept | own, "request that is under way", size)
        if missing > self._pool.available + self.store.evictable:
            message = f"the adapter takes {missing} pages, which running requests hold now; try again"
            raise HeadraceError("invalid_value", message, param="pinned")

    def unkeep(self, record: AdapterRecord) -> None:
        """Let it be evicted again when nobody uses it."""
        if record.generation in self._kept:
            self._kept.remove(record.generation)
            if not record.loading:
                self.store.unpin(record.generation)

    def check_integrity(self, items: Iterable[Item]) -> None:
        """Prove that claims, pins and the store agree. Raises ``AssertionError``."""
        self.store.check_integrity()
        live = {item.item_id: item for item in items}
        assert self._held.keys() <= live.keys(), "an item that is gone holds adapters"
        for record in self.store:
            generation = record.generation
            claims = sum(generation in held for held in self._held.values())
            coming = sum(generation in waits for waits in self._coming.values())
            kept = generation in self._kept and not record.loading
            assert self._claims.get(generation, 0) == claims, f"adapter generation {generation} is claimed wrongly"
            assert record.pins == claims - coming + kept, f"adapter generation {generation} is pinned wrongly"
            assert not coming or record.loading, f"items wait for adapter generation {generation}, which does not come"
            waiting = sum(generation == own for item in live.values() for own, _ in item.adapters)
            assert record.waiting == waiting, f"{record.waiting} items wait for adapter generation {generation}, {waiting} are live"

    def _begin(self, record: AdapterRecord) -> None:
        pages = self.store.begin_load(record.generation)
        assert pages is not None, "room was made for it"
        self.to_load.append(record.generation)

    def _make_room(self, count: int) -> None:
        made = self.store.make_room(count)
        assert made, "whoever is admitted has the room"

    def _check_fits(self, item: Item, used: set[int], who: str, more: int = 0) -> None:
        """The item, the adapters in ``used`` and nothing else must fit the pool. Raises ``invalid_value``."""
        own = self._pool.pages_for(item.prompt_length + max(0, item.max_tokens - 1))
        pages = more + sum(self.store.get(generation).size for generation in used)
        if own + pages > self._pool.lasting:
            message = f"a {who} needs {own} pages and adapters {pages}, the page pool has {self._pool.lasting}"
            raise HeadraceError("invalid_value", message, param="max_tokens")
