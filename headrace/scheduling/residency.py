"""Who holds pages: admission with whole-prompt reservation, growth, copy on write, and preemption when pages run out."""

from __future__ import annotations

from headrace.memory.page_pool import PagePool
from headrace.memory.page_table import fork_pages, is_private, put_page
from headrace.scheduling.item import Item
from headrace.scheduling.roster import Roster
from headrace.scheduling.step import PageCopy

_FIRST_GUESS = 0.5  # share of max_tokens that an item is expected to generate before any has finished
_SLOWEST_LEARNING = 0.05
_RUN_PAGES = 16  # runs much longer than this move no faster
_LEAST_AHEAD = 16  # an item that outlived its expectation is expected to go on for this many tokens


class Residency:
    """Page decisions for one scheduler.

    An item is admitted only when its whole prompt can be reserved (DeepSpeed-FastGen: otherwise split prompts can evict
    each other for ever) and when the projected peak of all running items fits the pool, with the output lengths seen so
    far as the guess (the "past-future" estimate of LightLLM's scheduler). Guesses may fail; then the item that arrived
    last gives its pages back. The item that arrived first is never preempted by another, and it alone fits the pool, so
    there is always progress. When nothing runs, only the item's own need counts.
    """

    __slots__ = ("_expected_share", "_finished", "_refused", "_roster", "max_running", "pool", "preempted", "recomputed")

    def __init__(self, pool: PagePool, roster: Roster, max_running: int) -> None:
        self.pool = pool
        self.max_running = max_running
        self.preempted: list[Item] = []
        self.recomputed = 0
        self._roster = roster
        self._expected_share = _FIRST_GUESS
        self._finished = 0
        self._refused: Item | None = None  # projected not to fit; asked again when some item left or gave pages back

    def admit(self, item: Item) -> bool:
        """Reserve what the first waiting item needs, all or nothing."""
        pool, running = self.pool, self._roster.running
        own = pool.pages_for(min(len(item.tokens) + 1, item.goal))
        if running == 0:
            item.reserved = max(own, min(own + len(item.forks), pool.available))
            if pool.reserve(item.reserved):
                return True
            item.reserved = 0
            return False
        needed = own + len(item.forks)
        if running + 1 + len(item.forks) > self.max_running or needed > pool.available or item is self._refused:
            return False
        if not self._fits_later(item):
            self._refused = item
            return False
        item.reserved = needed
        return pool.reserve(needed)

    def extend(self, item: Item, end: int) -> None:
        """Take the pages for a prompt's next chunk, up to position ``end``, from the item's reservation."""
        missing = self.pool.pages_for(end) - len(item.pages)
        if missing > 0:
            item.pages += self.pool.allocate_reserved(missing, *self._place(item, missing))
            item.reserved -= missing
        item.writable = len(item.pages) * self.pool.page_tokens

    def make_writable(self, item: Item, copies: list[PageCopy]) -> bool:
        """Let a decoding item write at position ``computed``: a new page, or its own copy of a shared one.

        Preempts from the end of the order of arrival until a page is free. False when the item itself was preempted.
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
            victim = self._roster.last_running()
            assert victim is not None, "the asking item runs"
            self.preempt(victim)
        item.writable = len(item.pages) * self.pool.page_tokens
        return bool(item.pages)

    def preempt(self, item: Item) -> None:
        """The item gives everything back and will catch up from its tokens, prompt and generated alike."""
        self.release(item)
        item.preemptions += 1
        item.recomputed += item.computed
        self.recomputed += item.computed
        item.computed = 0
        self._roster.preempted(item)
        self.preempted.append(item)

    def release(self, item: Item) -> None:
        """Give back pages and reservation."""
        self.pool.release(item.pages)
        self.pool.unreserve(item.reserved)
        item.pages = []
        item.reserved = 0
        item.writable = 0
        self._refused = None

    def fork(self, leader: Item, child: Item) -> None:
        """``child`` shares the pages of the leader's prompt; both must copy a part-filled last page before writing."""
        child.pages = fork_pages(self.pool, leader.pages)
        child.computed = child.writable = leader.writable = leader.computed
        if leader.reserved:
            leader.reserved -= 1
            child.reserved = 1

    def inherit(self, item: Item, heir: Item) -> None:
        """``heir`` gets everything that ``item`` holds."""
        heir.pages, heir.reserved, heir.writable = item.pages, item.reserved, item.writable
        heir.computed, heir.scored = item.computed, item.scored
        item.pages, item.reserved, item.writable = [], 0, 0

    def learn_length(self, item: Item) -> None:
        """An item has finished by itself: correct the guess of how much of ``max_tokens`` is used."""
        if item.max_tokens > 0:
            self._finished += 1
            rate = max(_SLOWEST_LEARNING, 1.0 / (self._finished + 1))
            self._expected_share += rate * (min(1.0, item.generated / item.max_tokens) - self._expected_share)

    def _one_page(self, item: Item) -> int | None:
        if item.reserved:
            item.reserved -= 1
            return self.pool.allocate_reserved(1, *self._place(item, 1))[0]
        taken = self.pool.allocate(1, *self._place(item, 1))
        return taken[0] if taken else None

    def _place(self, item: Item, count: int) -> tuple[int | None, int]:
        """Where the item's next ``count`` pages should lie: (its last page, pages that it may want behind them)."""
        ahead = self.pool.pages_for(item.goal) - len(item.pages) - count
        return (item.pages[-1] if item.pages else None), max(0, min(ahead, _RUN_PAGES))

    def _fits_later(self, item: Item) -> bool:
        """True when no moment is foreseen at which the running items and this one need more pages than there are.

        The need peaks just before some item ends: then all that end later still live, each grown by as many tokens.
        """
        roster = self._roster
        expected = []
        for other in (*roster.prompts, *roster.decodes, item):
            ahead = max(int(self._expected_share * other.max_tokens) - other.generated, _LEAST_AHEAD)
            limit = other.goal - len(other.tokens)
            expected.append((ahead if ahead < limit else limit, len(other.tokens)))
            if other.forks:
                expected += [(max(0, min(ahead, limit)), 0)] * len(other.forks)
        expected.sort(reverse=True)
        alive, tokens, most = 0, 0, 0
        for ahead, length in expected:
            alive += 1
            tokens += length
            most = max(most, tokens + alive * ahead)
        slack = alive * self.pool.page_tokens // 2  # part-filled last pages
        return most + slack <= self.pool.total * self.pool.page_tokens
