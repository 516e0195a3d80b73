"""Who gets a new request among up to a thousand instances: policies over the numbers that instances report, never over requests."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Protocol

from headrace.placement.load import Load
from headrace.scheduling.registry import Registry


class Dispatcher(Protocol):
    """Chooses among instances 0 … n - 1."""

    def note(self, instance: int, load: Load) -> None:
        """An instance's numbers have changed."""

    def choose(self) -> int:
        """The instance that gets the next request."""


class RoundRobin:
    """One after the other."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._next = count - 1

    def note(self, instance: int, load: Load) -> None:
        """Numbers don't matter here."""

    def choose(self) -> int:
        """The one behind the last."""
        self._next = (self._next + 1) % self._count
        return self._next


class Least:
    """The instance with the smallest rank, the longest unchanged one among equals. O(log instances) a change."""

    def __init__(self, count: int, rank: Callable[[Load], float]) -> None:
        self._rank = rank
        self._turn = count
        self._now = [(rank(Load(1)), index) for index in range(count)]
        self._heap = [(value, turn, index) for index, (value, turn) in enumerate(self._now)]
        heapify(self._heap)

    def note(self, instance: int, load: Load) -> None:
        """Rank it anew."""
        value = self._rank(load)
        if value == self._now[instance][0]:
            return
        self._turn += 1
        self._now[instance] = value, self._turn
        heappush(self._heap, (value, self._turn, instance))
        if len(self._heap) > 8 * len(self._now) + 64:
            self._heap = [(rank, turn, index) for index, (rank, turn) in enumerate(self._now)]
            heapify(self._heap)

    def choose(self) -> int:
        """The one that ranks lowest."""
        while True:
            value, turn, instance = self._heap[0]
            if self._now[instance] == (value, turn):
                return instance
            heappop(self._heap)


def _freeness_with_one_more(load: Load) -> float:
    """As :func:`headrace.placement.load.freeness` of the whole queue, without a copy: this is asked for after each step."""
    used = load.held + min(load.queue, load.pages)
    return (load.pages - used) / (load.running + load.waiting + 1)


DISPATCHERS: Registry[Callable[[int], Dispatcher]] = Registry(
    "dispatch policy",
    {
        "freest": lambda count: Least(count, lambda load: -_freeness_with_one_more(load)),
        "fewest": lambda count: Least(count, lambda load: load.running + load.waiting),
        "round_robin": RoundRobin,
    },
)
