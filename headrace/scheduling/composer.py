"""Composition of a step: which items take part and with how many tokens each.

The filling rules are those of Dynamic SplitFuse ("DeepSpeed-FastGen: High-throughput Text Generation for LLMs via MII and
DeepSpeed-Inference"): running streams first, one row each; then prompts, cut so that the step has its target size. Added
here, because the paper argues for them and its code leaves them out: a prompt that needs several steps is spread evenly over
them, and the bound is time predicted by Cost, not rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.scheduling.clustering import DEAR, WINDOW
from headrace.scheduling.cost import Cost
from headrace.scheduling.goodput import NO_DRAFTS, Drafted, Margin, choose_lengths
from headrace.scheduling.item import AGEING, Item, ItemKind, ItemState
from headrace.scheduling.registry import Registry
from headrace.scheduling.residency import GivesWay, Residency
from headrace.scheduling.roster import Roster
from headrace.scheduling.shares import OUTPUT_COST
from headrace.scheduling.step import PageCopy, Slice
from headrace.scheduling.waiting import PAGE_QUANTA, claim_on_pages, is_well_behind

ROW_TILE = 16  # rows that the kernels compute together
_FEWEST_ROWS = 4


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of one step.

    ``tokens``: rows it aims at. ``seconds``: how long it may take while streams wait for their next token, ``None``: no
    bound. ``capacity``: rows that the engine's buffers hold. ``logit_rows``: rows that pass through the head.
    ``items``: slices. ``paced``: ``seconds`` are those of the machine at the speed it was measured at, and nobody's promise: while
    all steps take longer (others use its cores), so may each. Otherwise prompts would shrink to a few rows a step, each of
    which reads all weights, and the slow machine would be slower still.
    """

    tokens: int
    seconds: float | None
    capacity: int
    logit_rows: int
    items: int
    paced: bool = False

    def bound(self, cost: Cost) -> float | None:
        """Seconds that a step may take now while streams wait."""
        return self.seconds * max(1.0, cost.pace) if self.paced and self.seconds is not None else self.seconds


class Draft:
    """A step in the making. Policies call ``add_decodes`` and ``add_prompts`` in the order they want."""

    __slots__ = (
        "_adapters", "_budget", "_cost", "_drafts", "_favoured", "_first_decode", "_limit", "_residency", "_room", "_roster",
        "_seconds", "_stream_rows", "adapter_pages", "copies", "decodes", "drafted", "logit_rows", "pairs", "slices", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        roster: Roster,
        residency: Residency,
        cost: Cost,
        budget: Budget,
        first_decode: int,
        drafts: Mapping[int, Drafted] = NO_DRAFTS,
    ) -> None:
        self.slices: list[Slice] = []
        self.drafted: dict[int, Sequence[int]] = {}  # by item id: tokens that are verified
        self.copies: list[PageCopy] = []
        self.decodes = 0
        self.tokens = 0
        self.pairs = 0
        self.logit_rows = 0
        self.adapter_pages = 0  # of the different adapters of its slices
        self._adapters: set[int] = set()
        self._roster = roster
        self._residency = residency
        self._cost = cost
        self._budget = budget
        self._first_decode = first_decode
        self._drafts = drafts
        self._stream_rows = 0
        self._room = self._limit = 0  # rows for prompts: those that are meant for them, and those that there are
        self._seconds: float | None = None
        self._favoured: Item | None = None  # others were set aside for it

    @property
    def load(self) -> tuple[int, int, int, int]:
        """What Cost is asked about."""
        return self.tokens, self.pairs, self.logit_rows, self.adapter_pages

    def add_decodes(self) -> None:
        """One row for each running stream.

        When the budget is smaller than the number of streams they take turns, and a quarter of it (at most one tile of
        rows) is left to prompts, so that neither side can starve.
        """
        roster, budget = self._roster, self._budget
        decodes = roster.decodes
        self._residency.begin_decodes()
        room = min(budget.tokens, budget.items, budget.logit_rows)
        if len(decodes) >= budget.tokens and (roster.prompts or roster.waiting):
            room = min(room, budget.tokens - min(budget.tokens // 4, ROW_TILE))
        if roster.prompts:
            room = min(room, budget.logit_rows - 1)
        chosen = decodes.copy() if len(decodes) <= room else _turn(decodes, self._first_decode, room)
        if roster.shares.several:  # whoever may have to give its pages back comes last, so that it has no row yet
            chosen.sort(key=claim_on_pages)
        residency, copies, append, new = self._residency, self.copies, self.slices.append, tuple.__new__
        pairs = 0
        for item in chosen:
            start = item.computed
            if start >= item.writable and not residency.make_writable(item, copies):
                continue
            append(new(Slice, (item, start, 1, 1)))
            pairs += start
        self.decodes = added = len(self.slices)
        if residency.adapters.in_use:
            for piece in self.slices:
                self._note_adapters(piece.item)
        self.pairs += pairs + added
        self.tokens += added
        self.logit_rows += added
        if self._drafts:
            self._add_drafted()
        self._stream_rows = self.tokens

    def add_prompts(self, *, whole: bool = False) -> None:
        """Chunks of prompts in order of arrival, running ones first, then as many waiting ones as are admitted.

        With several shares those that were served less go first, and a waiting prompt of a share that is well behind goes before
        a running one. ``whole``: as large as the buffers allow, without a bound on time and without splitting evenly.
        """
        roster, budget = self._roster, self._budget
        self._limit = (budget.capacity if whole else budget.tokens) - self.tokens
        if self._limit <= 0 or not (roster.prompts or roster.waiting):
            return
        self._room = self._limit if whole else min(self._limit, self._even_share(self._limit))
        self._seconds = None if whole or not self.slices else budget.bound(self._cost)
        admits = True
        for item in roster.prompts_in_turn():
            if roster.shares.several and admits:
                admits = self._admit_before(item)
            if not self._has_room:
                return
            self._take(item)
        if admits:
            self._admit_before(None)

    def make_way(self, gives_way: GivesWay) -> None:
        """Set running items aside for the first waiting one, if it does not fit beside them and they are to give way to it."""
        self._favoured = self._residency.make_way(gives_way)

    def _add_drafted(self) -> None:
        """Rows behind those of the streams that verify their drafts, as many as are expected to pay (SmartSpec's goodput).

        Prompt rows that the step will also hold are part of what a draft's row must be worth more than.
        """
        places = [place for place, piece in enumerate(self.slices) if piece.item.item_id in self._drafts]
        if not places:
            return
        budget, roster = self._budget, self._roster
        room = min(budget.tokens - self.tokens, budget.logit_rows - self.logit_rows)
        tokens, pairs, rows, pages = self.load
        value, seconds = float(self.decodes), None
        if roster.prompts or roster.waiting:
            ahead = max(0, min(room, self._even_share(max(1, room))))
            tokens, value, room, seconds = tokens + ahead, value + ahead / OUTPUT_COST, room - 1, budget.bound(self._cost)
        margin = Margin((tokens, pairs, rows, pages), value, room, seconds)
        streams = [(self.slices[place].start, self._drafts[self.slices[place].item.item_id].survival) for place in places]
        for place, count in zip(places, choose_lengths(streams, margin, self._cost), strict=True):
            if count:
                self._verify(place, count)

    def _verify(self, place: int, count: int) -> None:
        """Lengthen a stream's slice by ``count`` drafted tokens, or by those for which there are pages without asking anybody."""
        item, start, _, _ = self.slices[place]
        count = min(count, self._residency.reach(item, start + 1 + count) - start - 1)
        if count > 0:
            self.slices[place] = Slice(item, start, 1 + count, 1 + count)
            self.drafted[item.item_id] = self._drafts[item.item_id].tokens[:count]
            self.tokens += count
            self.logit_rows += count
            self.pairs += count * (start + 1) + count * (count + 1) // 2

    @property
    def _has_room(self) -> bool:
        return self._room > 0 and len(self.slices) < self._budget.items

    def _admit_before(self, running: Item | None) -> bool:
        """Admit waiting items whose share is well behind ``running``'s (``None``: all that may); False: no more in this step."""
        roster, residency = self._roster, self._residency
        while self._has_room:
            near = self._nearest()
            item = roster.clustering.choose(near, residency.adapters.place) if len(near) > 1 else near[0] if near else None
            if item is None or (running is not None and not is_well_behind(item, running)):
                return True
            if residency.preempted and item is not self._favoured:
                return False
            state = residency.admit(item)
            if state is None:
                return False
            roster.admit(item, state)
            roster.clustering.note(near, item)
            if state is not ItemState.MOVING and self._take(item) == 0:
                return False
        return True

    def _nearest(self) -> list[Item]:
        """The first waiting item, and where its adapters are dear those behind it that may pass it."""
        roster, residency = self._roster, self._residency
        first = roster.waiting.first()
        if first is None:
            return []
        pages = residency.adapters.new_pages(first) if first.adapters and roster.clustering.most_passed else 0
        if not pages or residency.preempted or not 0 < roster.running < residency.max_running:
            return [first]
        tokens, pairs, rows, others = self.load
        seconds = self._cost.predict(max(tokens, 1), pairs, rows, others)
        dear = self._cost.predict(max(tokens, 1), pairs, rows, others + pages) - seconds >= DEAR * seconds
        return roster.waiting.nearest(WINDOW) if dear else [first]

    def _take(self, item: Item) -> int:
        taken = self._add_chunk(item, self._room, self._limit, self._seconds)
        self._room -= taken
        self._limit -= taken
        return taken

    def _even_share(self, limit: int) -> int:
        """Rows for prompts in this step, so that the steps until the backlog is done are equally long.

        The sum over 8 steps' worth is enough: beyond that the even share is the limit itself, give or take a tile.
        """
        backlog = 0
        for item in self._roster.prompts:
            backlog += len(item.tokens) - item.computed
        for item in self._roster.waiting:
            if backlog > 8 * limit:
                return limit
            backlog += len(item.tokens) - item.computed
        steps = -(-backlog // limit)
        total = self.tokens + -(-backlog // steps)
        return -(-total // ROW_TILE) * ROW_TILE - self.tokens

    def _add_chunk(self, item: Item, room: int, limit: int, seconds: float | None) -> int:
        start = item.computed
        pending = len(item.tokens) - start
        count = min(pending, room)
        page = self._residency.pool.page_tokens
        if count < pending:
            count = min(pending, limit, count + -(start + count) % page)
        count = self._within_logit_rows(item, count, pending)
        if seconds is not None and count > 0:
            bound = self._cost.max_tokens_within(seconds, self.load, start)
            # some rows of prompt in each step, or prompts could starve: few beside few streams, whose time they lengthen most
            least = min(ROW_TILE, max(_FEWEST_ROWS, self.decodes // 4)) if self.tokens == self._stream_rows else 0
            count = min(count, max(bound, least))
        spare = (start + count) % page
        if count < pending and 0 < spare <= count // ROW_TILE:
            count -= spare  # a chunk that ends with a page costs little here and lets full pages be shared and moved
        if count > 0:
            self._append(item, start, count)
        return max(count, 0)

    def _within_logit_rows(self, item: Item, count: int, pending: int) -> int:
        """``count`` cut so that the rows which want logits fit."""
        left = self._budget.logit_rows - self.logit_rows
        if item.score_from is not None:
            unscored = max(item.computed, item.score_from, item.scored)
            count = min(count, unscored - item.computed + left)
        if count == pending and left < 1 and item.kind is not ItemKind.EMBED:
            count -= 1
        return count

    def _append(self, item: Item, start: int, count: int) -> None:
        end = start + count
        rows = 1 if end == len(item.tokens) else 0
        if item.score_from is not None:
            rows = max(rows, end - max(start, item.score_from, item.scored))
        if item.kind is ItemKind.EMBED:
            rows = 0
        if end > item.writable:
            self._residency.extend(item, end)
        if item.adapters:
            self._note_adapters(item)
        self.slices.append(Slice(item, start, count, rows))
        self.tokens += count
        self.pairs += count * start + count * (count + 1) // 2
        self.logit_rows += rows

    def _note_adapters(self, item: Item) -> None:
        for generation, _ in item.adapters:
            if generation not in self._adapters:
                self._adapters.add(generation)
                self.adapter_pages += self._residency.adapters.store.get(generation).size


class Policy(Protocol):
    """Fills a draft."""

    def __call__(self, draft: Draft) -> None:
        """Add slices to ``draft``."""


def first_come(draft: Draft) -> None:
    """Every stream goes on in every step; prompts fill what is left, in order of arrival."""
    draft.add_decodes()
    draft.add_prompts()


def by_share(draft: Draft) -> None:
    """As first come first served within each share; between shares, whoever was served least goes first.

    A waiting item takes the place, and if it must be the pages, of running ones whose share is well ahead of its own.
    """
    draft.make_way(_is_well_ahead)
    draft.add_decodes()
    draft.add_prompts()


def by_priority(draft: Draft) -> None:
    """As first come first served, but a waiting item takes the place of running ones that are half a step of priority behind.

    Half a step is the hysteresis: items of one priority never change places to and fro.
    """
    draft.make_way(_is_less_important)
    draft.add_decodes()
    draft.add_prompts()


def prompts_whole_first(draft: Draft) -> None:
    """Continuous batching as it was before prompts were split: whole prompts run alone and first, streams wait for them."""
    draft.add_prompts(whole=True)
    if not draft.slices:
        draft.add_decodes()


POLICIES: Registry[Policy] = Registry(
    "policy", {"fair": by_share, "fcfs": first_come, "priority": by_priority, "prompts_whole_first": prompts_whole_first}
)


def _is_well_ahead(running: Item, waiting: Item) -> bool:
    return is_well_behind(waiting, running, PAGE_QUANTA - 1)


def _is_less_important(running: Item, waiting: Item) -> bool:
    return running.order[0] >= waiting.order[0] + AGEING // 2


def _turn(decodes: list[Item], first: int, room: int) -> list[Item]:
    """``room`` streams from index ``first`` on, round the end, in order of arrival (the last to arrive is preempted first)."""
    first %= len(decodes)
    wrapped = first + room - len(decodes)
    return decodes[:wrapped] + decodes[first:] if wrapped > 0 else decodes[first : first + room]
