"""The real scheduler on a virtual clock: Cost takes the executor's place, so a policy is tried in milliseconds."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from headrace.scheduling.cost import Cost
from headrace.scheduling.item import Item, ItemKind
from headrace.scheduling.priority_changes import PriorityChange
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.shares import OUTPUT_COST
from headrace.scheduling.step import Step

_TOKEN = 0  # what is generated does not matter to scheduling; prompts differ from their first token on


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: ``prompt`` tokens arrive at ``time`` (seconds) and ``output`` tokens come back.

    ``max_tokens`` is what the request allows (``None``: exactly ``output``); the scheduler knows only that. ``share``,
    ``weight`` and ``priority`` are the item's.
    """

    time: float
    prompt: int
    output: int
    max_tokens: int | None = None
    share: str = ""
    weight: int = 1
    priority: int = 0


@dataclass(slots=True)
class Trace:
    """What happened: ``token_times[i]`` are the times at which the tokens of arrival *i*, sent at ``sent[i]``, were there.

    ``paid`` has an entry a step: what each share has paid for up to then, generated tokens counted twice, weights not counted.

    ``idle_plans`` counts plans that returned no step although items were live. ``step_seconds`` and ``step_tokens`` have
    one entry a step.
    """

    arrivals: Sequence[Arrival]
    token_times: list[list[float]]
    sent: list[float]
    step_seconds: list[float] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)
    paid: list[dict[str, int]] = field(default_factory=list)
    idle_plans: int = 0
    recomputed: int = 0
    preemptions: int = 0

    @property
    def finished(self) -> int:
        """Arrivals that got all their tokens."""
        return sum(len(times) == arrival.output for times, arrival in zip(self.token_times, self.arrivals, strict=True))

    @property
    def duration(self) -> float:
        """Seconds from the first arrival to the last token."""
        return max(times[-1] for times in self.token_times if times) - min(arrival.time for arrival in self.arrivals)

    @property
    def throughput(self) -> float:
        """Prompt and output tokens a second."""
        return sum(arrival.prompt + arrival.output for arrival in self.arrivals) / self.duration

    def gaps(self) -> list[float]:
        """All times between two tokens of one stream, sorted."""
        return sorted(b - a for times in self.token_times for a, b in pairwise(times))

    def first_token_seconds(self, share: str | None = None) -> list[float]:
        """Times from sending to the first token, sorted; of one share or of all."""
        return sorted(
            times[0] - sent
            for times, sent, arrival in zip(self.token_times, self.sent, self.arrivals, strict=True)
            if times and share in (None, arrival.share)
        )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of sorted values; 0 when there are none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Changes:
    """Priorities that change each ``every`` steps, drawn from ``seed``."""

    pattern: PriorityChange
    every: int
    seed: int = 0


def simulate(
    scheduler: Scheduler,
    arrivals: Sequence[Arrival],
    truth: Cost,
    *,
    clients: int | None = None,
    changes: Changes | None = None,
    check: bool = False,
) -> Trace:
    """Run all arrivals to their end; each step takes the time that ``truth`` says, and the scheduler's Cost learns from it.

    ``clients``: a closed loop, in which so many at most are under way and the next is sent when one is done (``None``: an
    open loop). ``check`` proves the integrity of items and pages after every step. Raises what :meth:`Scheduler.add` raises.
    """
    trace = Trace(arrivals, [[] for _ in arrivals], [arrival.time for arrival in arrivals])
    queue = sorted(range(len(arrivals)), key=lambda i: arrivals[i].time, reverse=True)
    most = len(arrivals) if clients is None else clients
    rng = random.Random(changes.seed if changes is not None else 0)
    now = arrivals[queue[-1]].time if queue else 0.0
    while queue or scheduler.live:
        while queue and arrivals[queue[-1]].time <= now and scheduler.live < most:
            index = queue.pop()
            if clients is not None:
                trace.sent[index] = now
            scheduler.add(_item(index, arrivals[index]))
        step = scheduler.plan()
        if step is None:
            if scheduler.live:
                trace.idle_plans += 1
                break
            now = arrivals[queue[-1]].time
            continue
        now += _run(scheduler, step, truth, trace)
        _commit(scheduler, step, trace, now)
        if changes is not None and len(trace.step_seconds) % changes.every == 0:
            changes.pattern(scheduler, scheduler.items, rng)
        if check:
            scheduler.check_integrity()
    trace.recomputed = scheduler.counters.recomputed
    trace.preemptions = scheduler.counters.preemptions
    return trace


def _item(index: int, arrival: Arrival) -> Item:
    limit = arrival.output if arrival.max_tokens is None else arrival.max_tokens
    return Item(
        index, ItemKind.GENERATE, [1 + index] * arrival.prompt, arrival.prompt, limit, arrival.time,
        priority=arrival.priority, share=arrival.share, weight=arrival.weight,
    )  # fmt: skip


def _run(scheduler: Scheduler, step: Step, truth: Cost, trace: Trace) -> float:
    load = step.tokens, step.attention_work, step.logit_rows
    seconds = truth.predict(*load)
    scheduler.cost.observe(*load, seconds)
    trace.step_seconds.append(seconds)
    trace.step_tokens.append(load[0])
    return seconds


def _commit(scheduler: Scheduler, step: Step, trace: Trace, now: float) -> None:
    done = [piece.item for piece in step.slices if piece.completes]
    paid = dict(trace.paid[-1]) if trace.paid else {}
    for item, start, count, _ in step.slices:
        end = start + count
        read = max(0, min(end, item.prompt_length) - max(start, item.charged))
        paid[item.share] = paid.get(item.share, 0) + read + OUTPUT_COST * (end == len(item.tokens))
    trace.paid.append(paid)
    scheduler.commit(step, {item.item_id: _TOKEN for item in done})
    for item in done:
        times = trace.token_times[item.item_id]
        times.append(now)
        if len(times) == trace.arrivals[item.item_id].output:
            scheduler.finish(item)
