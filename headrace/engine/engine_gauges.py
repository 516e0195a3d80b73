"""The state of an engine in one message, gathered from its parts."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.engine.training_wire import TrainingGauges
from headrace.engine.wire import AdapterGauges, Gauges, KeptGauges, LoadGauges, MoveGauges, SpeculationGauges, ViewGauges
from headrace.scheduling.item import ItemState
from headrace.scheduling.scheduler import Scheduler


@dataclass(slots=True)
class Totals:
    """What steps took so far, in seconds: whole, and outside of the model."""

    step_seconds: float = 0.0
    overhead_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PartGauges:
    """The gauges of an engine's parts; ``None`` for a part that it does not have."""

    moves: MoveGauges | None = None
    kept: KeptGauges | None = None
    views: ViewGauges | None = None
    adapters: AdapterGauges | None = None
    training: TrainingGauges | None = None
    speculation: SpeculationGauges | None = None
    load: LoadGauges | None = None


def load_of(scheduler: Scheduler, taken: int, live: int) -> LoadGauges:
    """The load of an engine that has received ``taken`` requests, of which ``live`` have not ended. O(items)."""
    head = scheduler.handover.first_waiting
    need = scheduler.handover.goal_pages
    return LoadGauges(
        taken=taken, live=live, head_pages=need(head) if head is not None else 0,
        queue_pages=sum(need(item) for item in scheduler.items if item.state is ItemState.WAITING),
        urgent=sum(item.priority > 0 and item.state is ItemState.RUNNING for item in scheduler.items),
        moved_in=scheduler.handover.moved_in, moved_out=scheduler.handover.moved_out, available=max(0, scheduler.pool.available),
    )  # fmt: skip


def gather_gauges(scheduler: Scheduler, totals: Totals, compiling: int, parts: PartGauges) -> Gauges:
    """All of it. ``compiling``: requests that wait for a grammar."""
    counters = scheduler.counters
    return Gauges(
        running=scheduler.running, waiting=scheduler.waiting + compiling,
        pages_total=scheduler.pool.usable, pages_free=scheduler.pool.free, steps=counters.steps,
        step_seconds=totals.step_seconds, overhead_seconds=totals.overhead_seconds,
        prompt_tokens=counters.prompt_tokens, generated_tokens=counters.generated,
        preemptions=counters.preemptions, recomputed_tokens=counters.recomputed,
        pages_cached=scheduler.pool.cached, prefix_lookups=counters.lookups, prefix_found_tokens=counters.found,
        prefix_evictions=scheduler.index.evictions if scheduler.index is not None else 0,
        moves=parts.moves, kept=parts.kept, views=parts.views, adapters=parts.adapters, training=parts.training,
        speculation=parts.speculation, load=parts.load,
    )  # fmt: skip
