"""The scheduler of one instance: who runs, with how many tokens, holding which pages. Pure policy with no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from types import MappingProxyType

from headrace.errors import HeadraceError
from headrace.memory.kept_pages import KeptPages
from headrace.memory.lodging import Transfer
from headrace.memory.page_pool import PagePool
from headrace.memory.prefix_index import PrefixIndex
from headrace.scheduling.clustering import Clustering
from headrace.scheduling.composer import Budget, Draft, Policy, by_share, first_come
from headrace.scheduling.cost import Cost
from headrace.scheduling.counters import Counters
from headrace.scheduling.goodput import NO_DRAFTS, Drafted
from headrace.scheduling.handover import Handover
from headrace.scheduling.integrity import Holders, check_items
from headrace.scheduling.item import Item, ItemKind, ItemState, order_of
from headrace.scheduling.keeping import Keeping, KeepOptions
from headrace.scheduling.promise import late_items
from headrace.scheduling.residency import Residency
from headrace.scheduling.roster import Roster
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.shares import Shares
from headrace.scheduling.step import Step
from headrace.scheduling.swapping import Swapping

DEFAULT_STEP_TOKENS = 128  # until the knee has been measured
DEFAULT_CAPACITY = 2048


NOTHING: Mapping[int, Sequence[int]] = MappingProxyType({})


class Scheduler:
    """plan → (the engine runs and samples) → commit → finish, once a step.

    ``pool`` and ``cost`` belong to the caller and may be read or taught by it; ``policy`` composes each step. Time is
    passed in. One thread only. ``budget`` may be replaced between steps.
    """

    def __init__(
        self,
        settings: SchedulingSettings,
        pool: PagePool,
        cost: Cost,
        policy: Policy,
        swapping: Swapping | None = None,
        keep: KeepOptions | None = None,
    ) -> None:
        self.settings = settings
        self.swapping = swapping
        self.pool = pool
        self.cost = cost
        self.counters = Counters()
        self.budget = self._first_budget()
        self.drafts: Mapping[int, Drafted] = NO_DRAFTS  # by item id: what may be verified by the next step
        self._policy = policy
        self.shares = Shares(apart=policy is by_share)
        self._roster = Roster(self.shares, Clustering(0 if policy is first_come else settings.adapter_passing))
        self.index = PrefixIndex(pool) if settings.prefix_reuse != "off" else None
        self.keeping: Keeping | None = None
        if keep is not None and self.index is not None:
            self.keeping = Keeping(KeptPages(self.index, pool, keep.slots, keep.run_pages), cost, keep.page_bytes)
        self._residency = Residency(pool, self._roster, settings.max_running, swapping, self.index)
        self._residency.keeping = self.keeping
        self.adapters = self._residency.adapters
        self.lent: Callable[[], Iterable[Sequence[int]]] = tuple  # page lists of whoever holds pages and is no item
        self.handover = Handover(self._residency, self._roster, self._enter)
        self._arrivals = 0
        self._turn = 0
        self._deadlines: list[tuple[float, tuple[int, int], Item]] = []

    @property
    def live(self) -> int:
        """Items added and not yet finished or cancelled."""
        return len(self._roster.items)

    @property
    def waiting(self) -> int:
        """Live items that hold no pages yet or again, forks of unfinished prompts included."""
        return self.live - self.running

    @property
    def running(self) -> int:
        """Items that hold pages."""
        return self._roster.running + len(self._roster.parked)

    @property
    def unread(self) -> int:
        """Items that wait, or that miss more of their tokens than the newest."""
        return self.live - len(self._roster.decodes) - len(self._roster.parked)

    @property
    def items(self) -> tuple[Item, ...]:
        """The live items."""
        return tuple(self._roster.items.values())

    @property
    def decodes(self) -> Sequence[Item]:
        """The running items that miss exactly their newest token."""
        return self._roster.decodes

    def get(self, item_id: int) -> Item | None:
        """The live item of that id."""
        return self._roster.items.get(item_id)

    def add(self, item: Item) -> None:
        """Queue an item.

        Raises :class:`HeadraceError`: ``invalid_value`` for an empty prompt, ``context_length_exceeded`` when the pool
        could never hold it even alone, ``queue_full`` when ``max_waiting`` items wait already.
        """
        self._check_addable(item)
        self._enter(item)
        self._roster.wait(item)

    def add_fork(self, leader: Item, item: Item) -> None:
        """Queue another choice of ``leader``'s prompt, computed once for all of them.

        The fork starts when the leader's prompt is done: its first token is then sampled from the same row, and it shares
        the prompt's pages. ``item.tokens`` is replaced by a copy of the prompt at that time, so it may share the leader's
        list before. When the leader is past its prompt or gone, or samples nothing, the item computes its own prompt like
        any other. Raises as :meth:`add`.
        """
        self._check_addable(item)
        self._enter(item)
        if (
            leader.item_id not in self._roster.items
            or leader.generated > 0
            or leader.max_tokens == 0
            or leader.kind is ItemKind.EMBED
        ):
            item.tokens = item.tokens[: item.prompt_length]
            self._roster.wait(item)
            return
        leader.forks.append(item)

    def cancel(self, item_id: int) -> Item | None:
        """Drop a live item and give its pages and reservation back at once; ``None`` when the id is not live.

        When it computes a prompt for forks, the first fork takes its place with everything computed so far.
        """
        item = self._roster.items.get(item_id)
        if item is not None:
            self._remove(item)
            self.counters.cancelled += 1
        return item

    def finish(self, item: Item) -> None:
        """The engine has decided that a live item is complete (end token, stop string, length): its pages go back."""
        if item.item_id not in self._roster.items:
            raise ValueError(f"item {item.item_id} is not live")
        self._residency.learn_length(item)
        if self.keeping is not None and item.known and not item.adapters:
            self.keeping.pages.ended(item.tenant, item.pages[: item.known])
        self._remove(item)
        self.counters.finished += 1

    def expired(self, now: float) -> list[Item]:
        """Live items whose deadline has passed, each reported once; the engine then cancels or finishes them."""
        late: list[Item] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            item = heappop(self._deadlines)[2]
            if item.state is not ItemState.FINISHED:
                late.append(item)
        return late

    def late(self, now: float) -> list[Item]:
        """Waiting items whose first token can't come as promised; the engine then cancels them."""
        return late_items(self.settings.first_token_ms, self._roster, self.cost, self.budget, now)

    def set_priority(self, item: Item, priority: int) -> None:
        """Change the priority of a live item; the place that it gets is as if it had come with it."""
        item.priority = priority
        self._roster.reorder(item, order_of(item.order[1], priority))

    def preempt(self, item: Item) -> bool:
        """Let a running item give its pages back now, between two steps; False when it does not run."""
        if item.state is not ItemState.RUNNING or item.item_id in self._roster.parked:
            return False
        self._residency.preempt(item)
        self._residency.preempted.clear()
        self.counters.preemptions += 1
        return True

    def carried(self, transfer: Transfer, *, well: bool) -> None:
        """A piece of a move has ended, well or not. Call between steps."""
        assert self.swapping is not None, "nothing moves without a tier"
        moves, items = self.swapping.moves, self._roster.items
        moves.done(transfer, carried=well)
        self.swapping.note(transfer, well=well)
        for owner, pages in moves.arrived:
            self._residency.arrive(items[owner], pages)
            self._go_on(items[owner])
        for owner in moves.lost:
            self._residency.lose(items[owner])
        moves.arrived.clear()
        moves.lost.clear()
        self.counters.recomputed = self._residency.recomputed

    def kept_arrived(self) -> None:
        """Let items go on whose kept pages have been read. Call between steps, when pieces have ended."""
        assert self.keeping is not None, "nothing is kept"
        arrived = self.keeping.pages.arrived
        for job in arrived:
            item = self._roster.items[job.owner]
            self._residency.arrive_kept(item, job)
            self._go_on(item)
        arrived.clear()

    def adapter_loaded(self, generation: int) -> None:
        """Let items go on that waited for this adapter. Call between steps."""
        self.adapters.loaded(generation)
        arrived, self.adapters.arrived = self.adapters.arrived, []
        for item_id in arrived:
            self._go_on(self._roster.items[item_id])

    def keep_nothing(self) -> None:
        """Go on without the disk below the index."""
        self.keeping = self._residency.keeping = None

    def waits_for_newcomers(self, step_seconds: float) -> bool:
        """True when the next step, of about ``step_seconds``, should wait for items whose pages are coming back."""
        if self.swapping is None or not self._roster.moving:
            return False
        moves, others = self.swapping.moves, self._roster.running - len(self._roster.moving)
        coming = sum(moves.find(item_id) is not None for item_id in self._roster.moving)
        return self.swapping.worth_waiting(moves.coming_pages, coming, others, step_seconds)

    def plan(self) -> Step | None:
        """The next step, or ``None`` when nothing can run before something is added or finished.

        Every step that is returned computes at least one token. Commit it before planning again.
        """
        residency = self._residency
        preempted: tuple[Item, ...] = ()
        while True:
            residency.preempted.clear()
            draft = Draft(self._roster, residency, self.cost, self.budget, self._turn, self.drafts)
            self._policy(draft)
            preempted += tuple(residency.preempted)
            if draft.slices or not residency.preempted:
                break
        self.adapters.fetch_ahead()
        self.counters.preemptions += len(preempted)
        self.counters.recomputed = residency.recomputed
        self.counters.lookups, self.counters.found = residency.lookups, residency.found_tokens
        if not draft.slices:
            return None
        self._turn += draft.decodes
        seconds = self.cost.predict(*draft.load)
        return Step(tuple(draft.slices), tuple(draft.copies), preempted, seconds, draft.adapter_pages, draft.drafted)

    def commit(self, step: Step, sampled: Mapping[int, int], accepted: Mapping[int, Sequence[int]] = NOTHING) -> list[Item]:
        """The step has run: advance its items, append sampled tokens, start forks.

        ``sampled`` maps the id of each item whose slice completes, and of each fork of it, to its new token. Items that were
        cancelled meanwhile are passed over. ``accepted``: of items whose drafts the step verified, the tokens that follow the
        sampled one because the draft foretold what stands before each; what was computed behind the last is as if it never were.
        Returns the items with nothing left to compute (``max_tokens`` reached, or no token was sampled for them: embeddings,
        scoring); they keep their pages until :meth:`finish`. Raises ``ValueError`` for a token sampled from an unfinished chunk.
        """
        spent: list[Item] = []
        used = prompt_rows = computed = further = 0
        running, take = ItemState.RUNNING, sampled.get
        for item, start, count, _ in step.slices:
            if item.state is not running or item.computed != start:
                continue
            end = start + count
            computed += count
            tokens = item.tokens
            token = take(item.item_id)
            if end > len(tokens) and token is not None:
                run = (token, *accepted.get(item.item_id, ()))
                end, token = start + len(run), run[-1]
                tokens += run[:-1]
                further += len(run) - 1
                item.account.counter += (len(run) - 1) * item.account.token_cost
            item.computed = end
            if end >= item.remember_at:
                self._residency.remember(item)
            if item.score_from is not None:
                item.scored = max(item.scored, end)
            if start < item.prompt_length:
                read = min(end, item.prompt_length)
                prompt_rows += read - start
                if read > item.charged:  # rows that are computed again were paid for
                    item.account.counter += (read - max(start, item.charged)) * item.account.row_cost
                    item.charged = read
            if end < len(tokens):
                continue
            if token is not None:
                tokens.append(token)
                used += 1
                item.account.counter += item.account.token_cost
                if item.forks:
                    used += self._start_forks(item, sampled, spent)
            if token is None or end >= item.goal:
                self._roster.park(item)
                spent.append(item)
        self._roster.caught_up()
        counters = self.counters
        counters.steps += 1
        counters.computed += computed
        counters.prompt_tokens += prompt_rows
        counters.generated += used + further
        if used != len(sampled):
            self._check_sampled(step, sampled)
        return spent

    def check_integrity(self) -> None:
        """Prove that items, lists and pages agree. Raises ``AssertionError`` naming the first fault. O(items + pages)."""
        check_items(self._roster, self._residency, Holders(self.swapping, self.keeping, self.handover, self.lent))
        if self.index is not None:
            self.index.check_integrity()

    def _first_budget(self) -> Budget:
        settings = self.settings
        tokens = settings.step_tokens or DEFAULT_STEP_TOKENS
        seconds = settings.gap_target_ms / 1000 if settings.gap_target_ms is not None else None
        return Budget(tokens, seconds, max(DEFAULT_CAPACITY, tokens), settings.max_logit_rows, settings.max_running)

    def _check_addable(self, item: Item) -> None:
        try:
            if not item.tokens:
                raise HeadraceError("invalid_value", "the prompt is empty", param="prompt")
            if self.waiting >= self.settings.max_waiting:
                raise HeadraceError("queue_full", f"{self.waiting} requests are waiting, which is the limit")
            positions = item.prompt_length + max(0, item.max_tokens - 1)
            room = self.pool.lasting * self.pool.page_tokens
            if positions > room:
                message = f"prompt and max_tokens need {positions} positions, the page pool holds {room}"
                raise HeadraceError("context_length_exceeded", message, param="max_tokens")
            self.adapters.check(item)
        except HeadraceError:
            self.counters.refused += 1
            raise
        if item.item_id in self._roster.items:
            raise ValueError(f"item {item.item_id} is live already")

    def _enter(self, item: Item) -> None:
        self._arrivals += 1
        item.order = order_of(self._arrivals, item.priority)
        if self.settings.prefix_reuse == "shared":
            item.tenant = ""
        item.account = self.shares.enter(item.share, item.weight, self.settings.part_of(item.adapters))
        item.goal = item.prompt_length + (max(0, item.max_tokens - 1) if item.kind is ItemKind.GENERATE else 0)
        self._roster.items[item.item_id] = item
        self.adapters.enter(item)
        if item.deadline is not None:
            heappush(self._deadlines, (item.deadline, item.order, item))

    def _remove(self, item: Item) -> None:
        if item.forks:
            heir, *others = item.forks
            heir.tokens = item.tokens
            heir.forks, item.forks = others, []
            heir.charged = item.charged
            self._residency.inherit(item, heir)
            self._roster.replace(item, heir)
            self.adapters.leave(item)
            return
        if item.state is ItemState.WAITING and not self._roster.is_queued(item):
            leader = next(other for other in self._roster.items.values() if item in other.forks)
            leader.forks.remove(item)
        self._residency.release(item)
        self._roster.drop(item)
        self.adapters.leave(item)

    def _go_on(self, item: Item) -> None:
        """Part of what a MOVING item waits for has come: it runs when that was all."""
        swapped = self.swapping is not None and self.swapping.moves.find(item.item_id) is not None
        kept = self.keeping is not None and self.keeping.pages.coming(item.item_id)
        if not (swapped or kept or self.adapters.is_coming(item.item_id)):
            self._roster.arrive(item)

    def _start_forks(self, leader: Item, sampled: Mapping[int, int], spent: list[Item]) -> int:
        """The leader's prompt is done: its forks share the pages and start with their own first tokens."""
        forks, leader.forks = leader.forks, []
        for child in forks:
            child.tokens = leader.tokens[: leader.prompt_length]
            child.tokens.append(sampled[child.item_id])
            child.scored = child.charged = child.prompt_length
            child.account.counter += child.account.token_cost
            self._residency.fork(leader, child)
            self._roster.run_decode(child)
            if child.computed >= child.goal:
                self._roster.park(child)
                spent.append(child)
        self.counters.forks += len(forks)
        return len(forks)

    def _check_sampled(self, step: Step, sampled: Mapping[int, int]) -> None:
        for item, _, _, _ in step.slices:
            if item.state is ItemState.RUNNING and item.pending > 0 and item.item_id in sampled and not item.is_decoding:
                raise ValueError(f"a token was sampled for item {item.item_id}, whose slice does not complete it")
