"""One simulated instance: the real scheduler over a pool of numbers, steps that take the time Cost says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from headrace.placement.load import Load
from headrace.planning.numbered_pages import NumberedPages
from headrace.scheduling.composer import POLICIES, Budget
from headrace.scheduling.cost import Cost
from headrace.scheduling.handover import Lease
from headrace.scheduling.item import Item, ItemState
from headrace.scheduling.repeating import repeat, repeatable
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.step import Step

_TOKEN = 0  # what is generated does not matter to scheduling


@dataclass(frozen=True, slots=True)
class InstanceModel:
    """What an instance is made of. ``cost``: the time of its steps; ``pages`` of ``page_tokens`` tokens; ``step_tokens``: rows a
    step aims at; ``gap_seconds``: how long a step may take while streams wait (``None``: no bound); ``page_seconds``: to send a
    page to another instance; ``overhead``: seconds of each step beside its model's."""

    cost: Cost
    pages: int
    step_tokens: int
    gap_seconds: float | None = None
    page_tokens: int = 16
    policy: str = "fcfs"
    max_running: int = 256
    page_seconds: float = 2.5e-4
    overhead: float = 0.0


@dataclass(slots=True)
class Progress:
    """What a request has got so far: times of its first and last token, how many, and the longest time between two."""

    output: int
    first: float = math.nan
    last: float = math.nan
    count: int = 0
    longest_gap: float = 0.0


@dataclass(slots=True)
class _Stretch:
    """Steps under way: ``step`` first, then ``count - 1`` like it, from ``begins`` on."""

    step: Step
    begins: float
    count: int = 1
    seconds: float = 0.0  # of the first one
    more: float = 0.0  # by which each is longer than the one before


@dataclass(slots=True)
class SimulatedInstance:
    """Runs requests in simulated time. ``version`` tells events that still hold from those that were overtaken. ``leaving``: it is
    being emptied, or is not there.

    Streams that go on alone are advanced by many steps at once; whoever arrives in between cuts that stretch at the end of
    the step under way, as in reality.
    """

    model: InstanceModel
    scheduler: Scheduler = field(init=False)
    version: int = 0
    leaving: bool = False
    _stretch: _Stretch | None = None
    _under_way: dict[int, Progress] = field(default_factory=dict)
    _priorities: bool = False  # urgent requests have been here

    def __post_init__(self) -> None:
        model = self.model
        settings = SchedulingSettings(
            step_tokens=max(16, model.step_tokens), max_running=model.max_running, max_waiting=1_000_000, prefix_reuse="off"
        )
        pool = NumberedPages(model.pages, model.page_tokens)
        self.scheduler = Scheduler(settings, pool, model.cost, POLICIES.get(model.policy))
        capacity = max(2048, model.step_tokens)
        self.scheduler.budget = Budget(model.step_tokens, model.gap_seconds, capacity, settings.max_logit_rows, model.max_running)

    @property
    def live(self) -> int:
        """Requests that are here."""
        return self.scheduler.live

    def add(self, item: Item, progress: Progress, now: float) -> float | None:
        """A request arrives. The time of the next event when that has changed."""
        self.scheduler.add(item)
        self._priorities |= item.priority > 0
        self._under_way[item.item_id] = progress
        if self._stretch is None:
            return self.begin(now)
        return self._cut(self._stretch, now)

    def end(self) -> tuple[list[int], float]:
        """The stretch under way is over: the requests that got their first token by it and go on, and the time.

        :meth:`begin` goes on; in between requests may be let go and taken in.
        """
        stretch, self._stretch = self._stretch, None
        assert stretch is not None, "something is under way"
        begun = self._commit(stretch)
        return begun, stretch.begins + _length(stretch, stretch.count)

    @property
    def idle(self) -> bool:
        """True when no step is under way."""
        return self._stretch is None

    def hurry(self, now: float) -> float | None:
        """Let the border of the step under way be an event; its time when that has changed."""
        assert self._stretch is not None, "something is under way"
        return self._cut(self._stretch, now)

    def let_go(self, item: Item) -> tuple[Progress, Lease]:
        """A request leaves, between two steps; its pages are the lease's until that is dropped."""
        return self._under_way.pop(item.item_id), self.scheduler.handover.detach([item])

    def take_in(self, item: Item, progress: Progress, lease: Lease) -> None:
        """A request goes on here behind what it has computed, between two steps."""
        item.pages = lease.pages[: len(item.pages)]
        self._priorities |= item.priority > 0
        self._under_way[item.item_id] = progress
        self.scheduler.handover.attach([item], lease)

    def load(self, now: float | None = None) -> Load:
        """The numbers that it would report; with ``now``, pages that streams have filled since their stretch began count too."""
        scheduler = self.scheduler
        grown = self._grown(now) if now is not None and self._stretch is not None else 0
        pool, waiting = scheduler.pool, scheduler.waiting
        head = queue = urgent = 0
        if waiting:
            need, first = scheduler.handover.goal_pages, scheduler.handover.first_waiting
            head = need(first) if first is not None else 0
            queue = sum(need(item) for item in scheduler.items if item.state is ItemState.WAITING)
        if self._priorities:
            urgent = sum(item.priority > 0 and item.state is ItemState.RUNNING for item in scheduler.items)
        return Load(pool.total, pool.held + pool.reserved + grown, scheduler.running, waiting, head, queue, urgent, self.leaving)

    def _grown(self, now: float) -> int:
        assert self._stretch is not None, "something is under way"
        steps = _steps_until(self._stretch, now) if self._stretch.count > 1 else 1
        items = [piece.item for piece in self._stretch.step.slices] if steps > 1 else ()
        pages_for = self.scheduler.pool.pages_for
        return sum(max(0, pages_for(len(item.tokens) + steps - 1) - len(item.pages)) for item in items)

    def begin(self, now: float) -> float | None:
        """Plan the next stretch; the time of its end, ``None`` when there is nothing to do."""
        step = self.scheduler.plan()
        if step is None:
            return None
        tokens, pairs, rows, streams = 0, 0, 0, True
        for item, start, count, wanted in step.slices:
            tokens += count
            pairs += count * start + count * (count + 1) // 2
            rows += wanted
            if count != 1 or start + 1 < len(item.tokens):
                streams = False
        predict = self.model.cost.predict
        stretch = _Stretch(step, now, seconds=predict(tokens, pairs, rows) + self.model.overhead)
        if streams:
            left = min(self._under_way[piece.item.item_id].output - piece.item.generated for piece in step.slices)
            stretch.count += repeatable(self.scheduler, step, left - 1)
            stretch.more = predict(tokens, pairs + tokens, rows) + self.model.overhead - stretch.seconds
        self._stretch = stretch
        self.version += 1
        return now + _length(stretch, stretch.count)

    def _cut(self, stretch: _Stretch, now: float) -> float | None:
        """Let the stretch end with the step that is under way at ``now``; ``None`` when it ends with that in any case."""
        count = _steps_until(stretch, now)
        if count >= stretch.count:
            return None
        stretch.count = count
        self.version += 1
        return stretch.begins + _length(stretch, count)

    def _commit(self, stretch: _Stretch) -> list[int]:
        step, scheduler = stretch.step, self.scheduler
        items = [item for item, start, count, _ in step.slices if start + count >= len(item.tokens)]
        scheduler.commit(step, dict.fromkeys((item.item_id for item in items), _TOKEN))
        if stretch.count > 1:
            repeat(scheduler, stretch.count - 1, _TOKEN)
        first, last = stretch.begins + stretch.seconds, stretch.begins + _length(stretch, stretch.count)
        longest = stretch.seconds + stretch.more * (stretch.count - 1)
        begun = []
        for item in items:
            progress = self._under_way[item.item_id]
            if progress.count:
                progress.longest_gap = max(progress.longest_gap, first - progress.last)
            else:
                progress.first = first
                begun.append(item.item_id)
            if stretch.count > 1:
                progress.longest_gap = max(progress.longest_gap, longest)
            progress.last = last
            progress.count += stretch.count
            if progress.count >= progress.output:
                scheduler.finish(item)
                del self._under_way[item.item_id]
        return begun


def _length(stretch: _Stretch, count: int) -> float:
    """Seconds of the first ``count`` steps."""
    return count * stretch.seconds + stretch.more * count * (count - 1) / 2


def _steps_until(stretch: _Stretch, now: float) -> int:
    """Steps of a stretch that have begun by ``now``."""
    low, high = 1, stretch.count
    while low < high:
        middle = (low + high) // 2
        if stretch.begins + _length(stretch, middle) >= now:
            high = middle
        else:
            low = middle + 1
    return low
