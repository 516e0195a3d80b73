"""The load of an instance as a few numbers, and what they say: virtual usage and freeness. No clock and no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What one instance told of itself, in pages and requests.

    ``pages``: its pool. ``held``: pages that somebody holds or was promised. ``running``: requests in the batch. ``head``: pages
    that the first to wait needs, ``queue``: all that wait. ``urgent``: running requests of high priority. ``leaving``: it is being
    emptied and takes nothing.
    """

    pages: int
    held: int = 0
    running: int = 0
    waiting: int = 0
    head: int = 0
    queue: int = 0
    urgent: int = 0
    leaving: bool = False


def virtual_usage(load: Load, headroom: float = 0.0, *, whole_queue: bool = False) -> float:
    """Pages that count as used ("Llumnix: Dynamic Scheduling for Large Language Model Serving", algorithm 1).

    Beside what is held: what the first to wait needs (``whole_queue``: all that wait), at most the whole pool, so that a request
    that never fits pushes nobody out for ever; and, while urgent requests run, ``headroom`` (0 … 1) of the pool that stays free for
    their speed. Infinite for an instance that is being emptied.
    """
    if load.leaving:
        return math.inf
    waiting = min(load.queue if whole_queue else load.head, load.pages)
    return load.held + waiting + (headroom * load.pages if load.urgent else 0.0)


def freeness(load: Load, headroom: float = 0.0, *, whole_queue: bool = False) -> float:
    """Pages left for each running request: how long the batch can go on. Below 0: overloaded; −∞: being emptied."""
    used = virtual_usage(load, headroom, whole_queue=whole_queue)
    if math.isinf(used):
        return -math.inf
    batch = load.running + (load.waiting if whole_queue else min(1, load.waiting))
    return (load.pages - used) / max(1, batch)
