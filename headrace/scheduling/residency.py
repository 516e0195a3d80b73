"""Who holds pages: admission with whole-prompt reservation, growth, copy on write, and preemption when pages run out."""

from __future__ import annotations

from collections.abc import Callable

from headrace.memory.kept_pages import KeptJob
from headrace.memory.page_pool import PagePool
from headrace.memory.page_table import fork_pages, is_private, put_page
from headrace.memory.prefix_index import PrefixIndex
from headrace.scheduling.adapter_presence import AdapterPresence
from headrace.scheduling.item import NEVER, Item, ItemKind, ItemState
from headrace.scheduling.keeping import Keeping
from headrace.scheduling.peak import peak_of
from headrace.scheduling.roster import Roster
from headrace.scheduling.step import PageCopy
from headrace.scheduling.swapping import Swapping

_FIRST_GUESS = 0.5  # share of max_tokens that an item is expected to generate before any has finished
_SLOWEST_LEARNING = 0.05
_RUN_PAGES = 16  # runs much longer than this move no faster
_LEAST_AHEAD = 16  # an item that outlived its expectation is expected to go on for this many tokens

GivesWay = Callable[[Item, Item], bool]
"""Whether a running item (first) is to give its pages back for a waiting one (second)."""


class Residency:
    """Page decisions for one scheduler.

    An item is admitted only when its whole prompt can be reserved (DeepSpeed-FastGen: otherwise split prompts can evict
    each other for ever) and when the projected peak of all running items fits the pool, with the output lengths seen so
    far as the guess (the "past-future" estimate of LightLLM's scheduler). Guesses may fail; then the item that arrived
    last gives its pages back. The item that arrived first is never preempted by another, and it alone fits the pool, so
    there is always progress. When nothing runs, only the item's own need counts.

    With ``swapping`` an item that gives its pages back may leave with them instead, and come back where it was. Pages that
    leave are free only when they are written: who asked for one takes part again in the step after that.

    With an ``index``, full pages are remembered as they are computed, and an admitted item starts behind the longest beginning
    that is remembered: of an earlier turn of the conversation, of another request, or of itself before it was preempted.
    """

    __slots__ = (
        "_expected_share", "_finished", "_refused", "_roster", "_unserved", "adapters",
        "found_tokens", "index", "keeping", "lookups", "max_running", "pool", "preempted", "recomputed", "swapping",
    )  # fmt: skip

    def __init__(
        self, pool: PagePool, roster: Roster, max_running: int, swapping: Swapping | None = None, index: PrefixIndex | None = None
    ) -> None:
        self.pool = pool
        self.adapters = AdapterPresence(pool)
        self.index = index
        self.keeping: Keeping | None = None  # over a disk that keeps more of what the index knew
        self.lookups = 0
        self.found_tokens = 0
        self.swapping = swapping
        self._unserved = 0  # streams that wait for pages which are being written out
        self.max_running = max_running
        self.preempted: list[Item] = []
        self.recomputed = 0
        self._roster = roster
        self._expected_share = _FIRST_GUESS
        self._finished = 0
        self._refused: tuple[int, int] | None = None  # (item, pages) projected not to fit; asked again when that changes

    def admit(self, item: Item) -> ItemState | None:
        """Give a waiting item what is known of it and reserve what else it needs, all or nothing (``None``: not now).

        RUNNING: it has all it needs. MOVING: it runs when its pages have come back, and its adapters are loaded.
        """
        pool, running = self.pool, self._roster.running
        refused = (item.item_id, pool.usable) == self._refused
        if running and (running + 1 + len(item.forks) > self.max_running or refused or self._unserved):
            return None  # (unserved: pages on their way out are promised to streams that run)
        pages, held = self._find(item)
        own = self._own_need(item, len(pages))
        needed = own + len(item.forks)
        if running and needed > self.adapters.room(item) - (len(pages) - held):  # cached pages that it takes won't be available
            return None
        if running and not self._fits_later(item):
            self._refused = item.item_id, pool.usable
            return None
        pool.share(pages)
        if running == 0:
            if not self._make_room(item, own):
                pool.release(pages)
                return None
            needed = max(own, min(needed, self.adapters.room(item)))
        self.adapters.claim(item, needed)
        item.reserved = needed
        reserved = pool.reserve(needed)
        assert reserved, "there is room"
        state = self._take_place(item, pages)
        return ItemState.MOVING if self.adapters.is_coming(item.item_id) else state

    def remember(self, item: Item) -> None:
        """An item has filled pages: make them known, or take over those that others have filled alike meanwhile."""
        assert self.index is not None, "nothing is remembered without an index"
        full = item.computed // self.pool.page_tokens
        self.index.add(item.root, item.tokens, item.pages, item.known, full)
        before, item.known = item.known, full
        item.remember_at = (full + 1) * self.pool.page_tokens
        if self.keeping is not None:
            self.keeping.grown(item, before)

    def extend(self, item: Item, end: int) -> None:
        """Take the pages for a prompt's next chunk, up to position ``end``, from the item's reservation."""
        missing = self.pool.pages_for(end) - len(item.pages)
        if missing > 0:
            item.pages += self.pool.allocate_reserved(missing, *self._place(item, missing))
            item.reserved -= missing
        item.writable = len(item.pages) * self.pool.page_tokens

    def begin_decodes(self) -> None:
        """Streams are about to ask for pages."""
        self._unserved = 0

    def make_writable(self, item: Item, copies: list[PageCopy]) -> bool:
        """Let a decoding item write at position ``computed``: a new page, or its own copy of a shared one.

        Preempts from the end of the order of arrival and shares until a page is free, or will be. False when the item itself was
        preempted, or has to wait for pages that are being written out.
        """
        index = item.computed // self.pool.page_tokens
        while item.pages:
            if is_private(self.pool, item.pages, index):
                break
            fresh = self._one_page(item)
            if fresh is not None:
                source = put_page(self.pool, item.pages, index, fresh)
                if source is not None:
                    copies.append(PageCopy(source, fresh))
                break
            if self._will_be_free() > self._unserved:
                self._unserved += 1
                return False
            victim = self._roster.last_running()
            assert victim is not None, "the asking item runs"
            if victim is item and self._reclaim(item):
                continue
            self.preempt(victim)
        item.writable = len(item.pages) * self.pool.page_tokens
        return bool(item.pages)

    def reach(self, item: Item, end: int) -> int:
        """The position up to which a decoding item may write, its next one at least: ``end`` if nobody is deprived by that."""
        while item.writable < end and not self._unserved:
            taken = self._free_page(item)
            if taken is None:
                break
            put_page(self.pool, item.pages, len(item.pages), taken)
            item.writable += self.pool.page_tokens
        return min(end, item.writable)

    def make_way(self, gives_way: GivesWay) -> Item | None:
        """Preempt from the end of the order for the first waiting item, as long as the last that runs gives way to it.

        The item that others were preempted for, if it fits now or when their pages have been written out.
        """
        roster = self._roster
        first = roster.waiting.first()
        while first is not None:
            victim = roster.last_running()
            if victim is None or not gives_way(victim, first) or self._would_fit(first):
                break
            self.preempt(victim)
        return first if self.preempted else None

    def preempt(self, item: Item) -> None:
        """The item gives its pages back: it leaves with them, or will catch up from its tokens, prompt and generated alike."""
        self.preempted.append(item)
        item.preemptions += 1
        if self.swapping is not None:
            self._step_back(item)
        if self.swapping is not None and self.swapping.leave(item):
            self.pool.unreserve(item.reserved)
            self._let_go(item)
        else:
            self.release(item)
            self._start_over(item)
        self._roster.preempted(item)

    def arrive(self, item: Item, pages: list[int]) -> None:
        """The pages of an item that was admitted as MOVING have come back."""
        item.pages = pages
        item.writable = len(pages) * self.pool.page_tokens
        item.remember_at = self.pool.page_tokens if self.index is not None else NEVER

    def arrive_kept(self, item: Item, job: KeptJob) -> None:
        """The disk's pages of an item that was admitted as MOVING are there, or the first of them; the others are computed."""
        assert self.index is not None, "what is kept was known"
        pages, lost = job.pages[: job.good], job.pages[job.good :]
        self.pool.release(lost)
        reserved = self.pool.reserve(len(lost))
        assert reserved, "they were free just now"
        item.reserved += len(lost)
        if job.good > job.found:
            self.index.add(item.root, item.tokens, pages, job.found, job.good)
        self._start_behind(item, pages)

    def lose(self, item: Item) -> None:
        """What an item left with can't be had back: it will catch up from its tokens."""
        if item.state is ItemState.MOVING:
            self.pool.unreserve(item.reserved)
            item.reserved = 0
            self.adapters.release(item)
            self._roster.preempted(item)
        self._start_over(item)
        self._refused = None

    def release(self, item: Item) -> None:
        """Give back pages and reservation, wherever they are."""
        if self.swapping is not None:
            self.swapping.moves.forget(item.item_id)
        if self.keeping is not None:
            self.keeping.pages.forget(item.item_id)
        self.pool.release(item.pages)
        self.pool.unreserve(item.reserved)
        self._let_go(item)

    def fork(self, leader: Item, child: Item) -> None:
        """``child`` shares the pages of the leader's prompt; both must copy a part-filled last page before writing."""
        child.pages = fork_pages(self.pool, leader.pages)
        child.computed = child.writable = child.shared = leader.writable = leader.computed
        child.known, child.remember_at = leader.known, leader.remember_at
        if leader.reserved:
            leader.reserved -= 1
            child.reserved = 1
        self.adapters.join(child)

    def inherit(self, item: Item, heir: Item) -> None:
        """``heir`` gets everything that ``item`` holds."""
        heir.pages, heir.reserved, heir.writable = item.pages, item.reserved, item.writable
        heir.computed, heir.scored, heir.found, heir.shared = item.computed, item.scored, item.found, item.shared
        heir.known, heir.remember_at = item.known, item.remember_at
        item.pages, item.reserved, item.writable = [], 0, 0
        self.adapters.inherit(item, heir)
        if self.swapping is not None:
            self.swapping.moves.rename(item.item_id, heir.item_id)
        if self.keeping is not None:
            self.keeping.pages.rename(item.item_id, heir.item_id)

    def learn_length(self, item: Item) -> None:
        """An item has finished by itself: correct the guess of how much of ``max_tokens`` is used."""
        if item.max_tokens > 0:
            self._finished += 1
            rate = max(_SLOWEST_LEARNING, 1.0 / (self._finished + 1))
            self._expected_share += rate * (min(1.0, item.generated / item.max_tokens) - self._expected_share)

    def _would_fit(self, item: Item) -> bool:
        """True when nobody has to give way before the item can be admitted."""
        running = self._roster.running
        if running == 0:
            return True
        found, held = self._find(item)
        needed = self._own_need(item, len(found)) + len(item.forks)
        room = self.adapters.room(item) - (len(found) - held) + self._will_be_free()
        return running + 1 + len(item.forks) <= self.max_running and needed <= room and self._fits_later(item)

    def _find(self, item: Item) -> tuple[list[int], int]:
        """The pages that a waiting item may start behind, and how many of them others hold.

        Its last token's row is wanted in any case, and so may be earlier ones.
        """
        item.shared = 0
        most = self._most_found(item)
        if self.index is None or not most:
            return [], 0
        found = self.index.find(item.root, item.tokens, most)
        held = sum(self.pool.references(page) > 0 for page in found)
        item.shared = held * self.pool.page_tokens
        return found, held

    def _most_found(self, item: Item) -> int:
        """Pages that a waiting item may do without computing."""
        if item.kind is ItemKind.EMBED or item.computed:
            return 0
        most = len(item.tokens) - 1
        if item.score_from is not None:
            most = min(most, max(item.score_from, item.scored))
        return most // self.pool.page_tokens

    def _own_need(self, item: Item, found: int) -> int:
        """Pages to reserve for a waiting item, beside those that are found or that it left behind."""
        return self.pool.pages_for(min(len(item.tokens) + 1, item.goal)) - self._resident(item) - found

    def _start_behind(self, item: Item, pages: list[int]) -> None:
        """An item that is admitted takes these pages of the index and goes on behind them."""
        item.pages = pages
        item.computed = item.writable = len(pages) * self.pool.page_tokens
        again, item.lost = max(0, item.lost - item.computed), 0
        item.recomputed += again
        self.recomputed += again
        if not item.preemptions:
            item.found = item.computed
        if self.index is not None:
            item.known = len(pages)
            item.remember_at = item.computed + self.pool.page_tokens
            self.lookups += 1
            self.found_tokens += item.computed

    def _let_go(self, item: Item) -> None:
        """The item holds nothing any more."""
        self.adapters.release(item)
        item.pages = []
        item.reserved = item.writable = item.shared = item.known = 0
        item.remember_at = NEVER
        self._refused = None

    def _take_place(self, item: Item, pages: list[int]) -> ItemState:
        """Let an admitted item take what is known of it or what it left behind, and start to bring back what lies below."""
        if self.swapping is None or self.swapping.moves.find(item.item_id) is None:
            return self._start_or_read(item, pages)
        missing = self.swapping.moves.missing(item.item_id)
        fresh = self.pool.allocate_reserved(missing, *self._place(item, missing))
        item.reserved -= missing
        back = self.swapping.moves.come(item.item_id, fresh)
        if back is None:
            return ItemState.MOVING
        self.arrive(item, back)
        return ItemState.RUNNING

    def _start_or_read(self, item: Item, pages: list[int]) -> ItemState:
        """Start behind what the pool still has, or first read what the disk keeps behind that."""
        slots = self.keeping.slots_for(item, len(pages), self._most_found(item)) if self.keeping is not None else []
        if self.keeping is None or not slots:
            self._start_behind(item, pages)
            return ItemState.RUNNING
        ahead = self.pool.pages_for(item.goal) - len(pages) - len(slots)
        fresh = self.pool.allocate_reserved(len(slots), pages[-1] if pages else None, max(0, min(ahead, _RUN_PAGES)))
        item.reserved -= len(slots)
        self.keeping.pages.come(item.item_id, pages, fresh, slots)
        return ItemState.MOVING

    def _step_back(self, item: Item) -> None:
        """An item does not leave with a part-filled page that it shares: others may write next to its tokens."""
        full = item.computed - item.computed % self.pool.page_tokens
        if full < item.computed and not is_private(self.pool, item.pages, full // self.pool.page_tokens):
            item.recomputed += item.computed - full
            self.recomputed += item.computed - full
            item.computed = full

    def _start_over(self, item: Item) -> None:
        item.lost = item.computed
        item.computed = 0

    def _resident(self, item: Item) -> int:
        return self.swapping.moves.resident(item.item_id) if self.swapping is not None else 0

    def _will_be_free(self) -> int:
        return self.swapping.moves.leaving_pages if self.swapping is not None else 0

    def _make_room(self, item: Item, count: int) -> bool:
        """True when the only item to run finds its pages; shared ones that waiting items keep are taken if it must be."""
        while count > self.adapters.room(item):
            if self._will_be_free() or not self._reclaim(item):
                return False
        return True

    def _reclaim(self, item: Item) -> bool:
        """Take pages that a waiting item left behind because they were shared; the last to arrive loses first."""
        if self.swapping is None:
            return False
        for other in reversed(self._roster.waiting):
            if other is not item and self.swapping.moves.resident(other.item_id):
                self.swapping.moves.forget(other.item_id)
                self._start_over(other)
                return True
        return False

    def _one_page(self, item: Item) -> int | None:
        taken = self._free_page(item)
        return self._free_page(item) if taken is None and self.adapters.make_page() else taken

    def _free_page(self, item: Item) -> int | None:
        if item.reserved:  # a page that was promised to it, else one that is free
            item.reserved -= 1
            return self.pool.allocate_reserved(1, *self._place(item, 1))[0]
        taken = self.pool.allocate(1, *self._place(item, 1))
        return taken[0] if taken else None

    def _place(self, item: Item, count: int) -> tuple[int | None, int]:
        """Where the item's next ``count`` pages should lie: (its last page, pages that it may want behind them)."""
        ahead = self.pool.pages_for(item.goal) - len(item.pages) - count
        return (item.pages[-1] if item.pages else None), max(0, min(ahead, _RUN_PAGES))

    def _fits_later(self, item: Item) -> bool:
        """True when no moment is foreseen at which the running items and this one need more pages than there are."""
        roster = self._roster
        expected = []
        for other in (*roster.prompts, *roster.decodes, *roster.moving.values(), item):
            ahead = max(int(self._expected_share * other.max_tokens) - other.generated, _LEAST_AHEAD)
            limit = other.goal - len(other.tokens)
            expected.append((ahead if ahead < limit else limit, len(other.tokens) - other.shared))
            if other.forks:
                expected += [(max(0, min(ahead, limit)), 0)] * len(other.forks)
        slack = len(expected) * self.pool.page_tokens // 2  # part-filled last pages
        return peak_of(expected) + slack <= (self.pool.usable - self.adapters.pages_with(item)) * self.pool.page_tokens
