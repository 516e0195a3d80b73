"""Priorities that change while requests run: the workloads of "FastSwitch: Optimizing Context Switching Efficiency in
Fairness-aware Large Language Model Serving", for experiments and simulations."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from headrace.scheduling.item import MOST_PRIORITY, Item
from headrace.scheduling.scheduler import Scheduler

PriorityChange = Callable[[Scheduler, Sequence[Item], random.Random], None]
"""Gives live items new priorities between two steps."""

_STAY = 0.9


def random_priorities(scheduler: Scheduler, items: Sequence[Item], rng: random.Random) -> None:
    """FastSwitch's random pattern: everybody gets a fresh rank."""
    for item in items:
        scheduler.set_priority(item, rng.randint(-MOST_PRIORITY, MOST_PRIORITY))


def markov_priorities(scheduler: Scheduler, items: Sequence[Item], rng: random.Random) -> None:
    """FastSwitch's Markov pattern: each is high or low and stays so with probability 0.9."""
    for item in items:
        high = item.priority > 0 if rng.random() < _STAY else item.priority <= 0
        scheduler.set_priority(item, MOST_PRIORITY if high else -MOST_PRIORITY)


def least_served_first(scheduler: Scheduler, items: Sequence[Item], rng: random.Random) -> None:
    """Each request as a share of its own: who was served least goes first (prompt tokens count once, generated ones twice)."""
    ranked = sorted(items, key=lambda item: (min(item.computed, item.prompt_length) + 2 * item.generated, rng.random()))
    for place, item in enumerate(ranked):
        scheduler.set_priority(item, MOST_PRIORITY - 2 * MOST_PRIORITY * place // max(1, len(ranked) - 1))
