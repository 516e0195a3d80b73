"""Which adapters lie in the page pool: their life from registration to eviction, without a byte of content.

Adapters take pages of the same pool as keys and values ("S-LoRA: Serving Thousands of Concurrent LoRA Adapters", Sheng et
al.: unified paging), so that neither side has room of its own that stands empty while the other starves.

::

    registered → loading → resident ⇄ pinned (in use by work of a step)
        ↑________ evicted ___|
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from enum import Enum

from headrace.errors import HeadraceError
from headrace.memory.page_pool import PagePool


class AdapterState(Enum):
    """Where an adapter is in its life."""

    REGISTERED = "registered"
    LOADING = "loading"
    RESIDENT = "resident"
    PINNED = "pinned"


class AdapterRecord:
    """One generation of an adapter: what is registered under a name never changes, a new content is a new generation.

    ``size``: pages it takes. ``pages``: the pages it has, while it is loading or resident. ``waiting``: requests that will
    need it, ``pins``: uses by work of a step. ``retired``: nobody new may ask for it. ``fetched_ahead``: loaded before
    anybody could run with it, and not used since.
    """

    __slots__ = ("fetched_ahead", "generation", "loading", "name", "pages", "pins", "retired", "size", "waiting")

    def __init__(self, name: str, generation: int, size: int) -> None:
        self.name, self.generation, self.size = name, generation, size
        self.pages: list[int] = []
        self.pins = self.waiting = 0
        self.loading = self.retired = self.fetched_ahead = False

    @property
    def state(self) -> AdapterState:
        """Derived from what it holds."""
        if not self.pages:
            return AdapterState.REGISTERED
        if self.loading:
            return AdapterState.LOADING
        return AdapterState.PINNED if self.pins else AdapterState.RESIDENT


class AdapterStore:
    """The adapters of one pool. ``ahead_share``: at most this part of the pool holds adapters fetched ahead.

    ``on_evict`` gets every generation whose pages are given back. Wrong use (unpinning what is not pinned, …) raises
    ``ValueError``: it is a bug in the caller, never something a client can cause.
    """

    __slots__ = (
        "_ahead_limit", "_current", "_known", "_next", "_pool", "_victims",
        "ahead_pages", "evictable", "evictions", "holding", "loading", "on_evict", "resident_pages",
    )  # fmt: skip

    def __init__(self, pool: PagePool, ahead_share: float = 0.1) -> None:
        self._pool = pool
        self._ahead_limit = int(pool.lasting * ahead_share)
        self._known: dict[int, AdapterRecord] = {}
        self._current: dict[str, AdapterRecord] = {}
        self._next = 1
        # Resident and not in use, by what their loss would cost: nobody waits for them; fetched for somebody who waits, but
        # never used; somebody waits. In each the one used longest ago first.
        self._victims: tuple[OrderedDict[int, AdapterRecord], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        self.ahead_pages = 0  # of adapters fetched ahead
        self.resident_pages = 0  # of all adapters that are loading or resident
        # Pages that make_room could give back: what is free in the pool and this is all that work may count on.
        self.evictable = 0
        self.holding = self.loading = 0  # adapters that have pages, and those of them whose numbers are being read
        self.evictions = 0  # adapters whose pages others needed
        self.on_evict: Callable[[AdapterRecord], object] = lambda record: None

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[AdapterRecord]:
        """Every generation that is registered or still in use, the oldest first."""
        return iter(self._known.values())

    @property
    def names(self) -> int:
        """Adapters that have names."""
        return len(self._current)

    def register(self, name: str, size: int) -> AdapterRecord:
        """A new generation under that name; one that had the name is retired.

        Raises ``invalid_value`` for an adapter that the whole pool could not hold.
        """
        if not 1 <= size <= self._pool.lasting:
            raise HeadraceError(
                "invalid_value", f"adapter {name[:64]!r} takes {size} pages, the pool has {self._pool.lasting}", param="lora_path"
            )
        if name in self._current:
            self.retire(name)
        record = AdapterRecord(name, self._next, size)
        self._next += 1
        self._known[record.generation] = self._current[name] = record
        return record

    def find(self, name: str) -> AdapterRecord | None:
        """The generation that new requests for that name get."""
        return self._current.get(name)

    def known(self, generation: int) -> AdapterRecord | None:
        """A generation, or ``None`` when it is gone for good or never was."""
        return self._known.get(generation)

    def get(self, generation: int) -> AdapterRecord:
        """A generation that is registered or still in use."""
        if generation not in self._known:
            raise ValueError(f"no adapter has generation {generation}")
        return self._known[generation]

    def retire(self, name: str) -> AdapterRecord:
        """Take the name away from its generation, which goes as soon as nobody uses it or waits for it."""
        if name not in self._current:
            raise ValueError(f"no adapter is called {name[:64]!r}")
        record = self._current.pop(name)
        record.retired = True
        self._settle(record)
        return record

    def wait(self, generation: int) -> None:
        """One more request needs it: from arrival to end, so that its generation stays."""
        record = self.get(generation)
        record.waiting += 1
        self._settle(record)

    def unwait(self, generation: int) -> None:
        """A request that needed it has ended."""
        record = self.get(generation)
        if record.waiting < 1:
            raise ValueError(f"nobody waits for adapter generation {generation}")
        record.waiting -= 1
        self._settle(record)

    def begin_load(self, generation: int, ahead: bool = False) -> Sequence[int] | None:
        """Pages for it, all or nothing (``None``): free ones, and those of less wanted adapters.

        ``ahead``: before anybody can run with it. That takes no page from an adapter somebody waits for, nor more than the share.
        """
        record = self.get(generation)
        if record.pages:
            raise ValueError(f"adapter generation {generation} is {record.state.value} already")
        if ahead and self.ahead_pages + record.size > self._ahead_limit:
            return None
        if not self.make_room(record.size, only_idle=ahead):
            return None
        pages = self._pool.allocate(record.size)
        assert pages is not None, "room was made for it"
        record.pages, record.loading, record.fetched_ahead = pages, True, ahead
        self.resident_pages += record.size
        self.ahead_pages += record.size if ahead else 0
        self.holding += 1
        self.loading += 1
        return pages

    def finish_load(self, generation: int) -> None:
        """Its numbers are in its pages."""
        record = self.get(generation)
        if not record.loading:
            raise ValueError(f"adapter generation {generation} is not loading")
        record.loading = False
        self.loading -= 1
        self._settle(record)

    def abandon_load(self, generation: int) -> None:
        """Its numbers could not be read: the pages go back."""
        record = self.get(generation)
        if not record.loading:
            raise ValueError(f"adapter generation {generation} is not loading")
        self._give_back(record)
        self._settle(record)

    def pin(self, generation: int) -> None:
        """Work of a step reads it: it must be resident, and stays."""
        record = self.get(generation)
        if not record.pages or record.loading:
            raise ValueError(f"adapter generation {generation} is {record.state.value} and can't be pinned")
        record.pins += 1
        if record.fetched_ahead:
            record.fetched_ahead = False
            self.ahead_pages -= record.size
        self._settle(record)

    def unpin(self, generation: int) -> None:
        """That work has ended."""
        record = self.get(generation)
        if record.pins < 1:
            raise ValueError(f"adapter generation {generation} is not pinned")
        record.pins -= 1
        self._settle(record)

    def make_room(self, count: int, only_idle: bool = False) -> bool:
        """Have ``count`` pages available, evicting the least wanted adapters; evicts none when that would not be enough.

        ``only_idle``: only adapters that nobody waits for.
        """
        victims = self._victims[:1] if only_idle else self._victims
        missing = count - self._pool.available
        chosen: list[AdapterRecord] = []
        for record in (record for rank in victims for record in rank.values()):
            if missing <= 0:
                break
            chosen.append(record)
            missing -= record.size
        if missing > 0:
            return False
        for record in chosen:
            self._give_back(record)
            self._settle(record)
        self.evictions += len(chosen)
        return True

    def holders(self) -> Iterator[Sequence[int]]:
        """The page lists of all adapters, for the pool's check."""
        return (record.pages for record in self._known.values() if record.pages)

    def check_integrity(self) -> None:
        """Prove that counts and eviction order agree with the records. Raises ``AssertionError``."""
        records = list(self._known.values())
        held = sum(len(record.pages) for record in records)
        assert held == self.resident_pages, f"{held} pages are held, {self.resident_pages} counted"
        counts = sum(bool(record.pages) for record in records), sum(record.loading for record in records)
        assert counts == (self.holding, self.loading), (
            f"{counts} adapters have pages and load, {self.holding, self.loading} counted"
        )
        ahead = sum(record.size for record in records if record.fetched_ahead)
        assert ahead == self.ahead_pages, f"{ahead} pages are fetched ahead, {self.ahead_pages} counted"
        idle = sum(record.size for record in records if record.state is AdapterState.RESIDENT)
        assert idle == self.evictable, f"{idle} pages are evictable, {self.evictable} counted"
        ranked = {generation for victims in self._victims for generation in victims}
        for record in records:
            where = f"adapter generation {record.generation}"
            assert len(record.pages) in (0, record.size), f"{where} has {len(record.pages)} of {record.size} pages"
            assert record.pages or not (record.pins or record.loading or record.fetched_ahead), f"{where} is in use without pages"
            assert (record.generation in ranked) == (record.state is AdapterState.RESIDENT), f"{where} is ranked wrongly"
            assert record.retired != (self._current.get(record.name) is record), f"{where} is retired and has its name"
            assert not _is_over(record), f"{where} is over and still known"

    def _settle(self, record: AdapterRecord) -> None:
        """Put it where its counts say: among the victims of its rank as the newest, or out of sight."""
        for victims in self._victims:
            if victims.pop(record.generation, None) is not None:
                self.evictable -= record.size
        if record.state is AdapterState.RESIDENT:
            if record.retired and not record.waiting:
                self._give_back(record)
            else:
                rank = 0 if not record.waiting else 1 if record.fetched_ahead else 2
                self._victims[rank][record.generation] = record
                self.evictable += record.size
        if _is_over(record):
            self._known.pop(record.generation, None)

    def _give_back(self, record: AdapterRecord) -> None:
        self._pool.release(record.pages)
        self.resident_pages -= record.size
        self.holding -= 1
        self.loading -= record.loading
        self.ahead_pages -= record.size if record.fetched_ahead else 0
        record.pages, record.loading, record.fetched_ahead = [], False, False
        self.on_evict(record)


def _is_over(record: AdapterRecord) -> bool:
    return record.retired and not record.pages and not record.waiting
