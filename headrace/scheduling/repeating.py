"""Many steps at once, for simulations: while nothing comes and nothing ends, each step is the last one with longer sequences."""

from __future__ import annotations

from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.step import Step


def repeatable(scheduler: Scheduler, step: Step, most: int) -> int:
    """How many steps like ``step`` (planned, not committed), ``most`` at most, follow it if nothing arrives.

    All streams go on, none ends, and the pages suffice; 0 when anything else than streams is there.
    """
    roster, residency = scheduler._roster, scheduler._residency
    streams = roster.decodes
    if roster.prompts or roster.waiting or roster.moving or roster.parked or len(streams) != len(step.slices):
        return 0
    if residency.index is not None or residency.swapping is not None:
        return 0  # what they remember and move depends on each page's turn
    pool = residency.pool
    count = min(most, min(item.goal - item.computed for item in streams) - 1)
    if count < 1 or any(pool.references(item.pages[-1]) > 1 for item in streams):
        return 0
    missing = sum(max(0, pool.pages_for(item.computed + 1 + count) - len(item.pages) - item.reserved) for item in streams)
    return count if missing <= pool.available else 0


def repeat(scheduler: Scheduler, count: int, token: int) -> None:
    """Advance all streams by ``count`` times ``token`` at once; ``count`` is at most what :func:`repeatable` said."""
    pool = scheduler.pool
    more_tokens = count * len(scheduler._roster.decodes)
    scheduler._turn += more_tokens  # whose turn it is when they are more than fit a step
    counters = scheduler.counters
    counters.steps += count
    counters.computed += more_tokens
    counters.generated += more_tokens
    for item in scheduler._roster.decodes:
        missing = pool.pages_for(item.computed + count) - len(item.pages)
        promised = min(missing, item.reserved)
        if promised > 0:
            item.reserved -= promised
            item.pages += pool.allocate_reserved(promised, item.pages[-1])
        if missing > promised:
            more = pool.allocate(missing - promised, item.pages[-1])
            assert more is not None, "pages suffice"
            item.pages += more
        item.writable = len(item.pages) * pool.page_tokens
        item.computed += count
        item.tokens += [token] * count
        item.account.counter += count * item.account.token_cost
