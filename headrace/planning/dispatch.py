"""Who gets a new request among up to a thousand instances: policies over the numbers that instances report, never over requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Protocol

from headrace.placement.dispatch import Newcomer, choose_instance
from headrace.placement.load import Load
from headrace.scheduling.registry import Registry


class Dispatcher(Protocol):
    """Chooses among instances 0 … n - 1."""

    def note(self, instance: int, load: Load) -> None:
        """An instance's numbers have changed."""

    def choose(self, newcomer: Newcomer) -> int:
        """The instance that gets this request."""


class RoundRobin:
    """One after the other."""

    def __init__(self, count: int) -> None:
        self._leaving = [False] * count
        self._next = count - 1

    def note(self, instance: int, load: Load) -> None:
        """Only whether it takes requests matters here."""
        self._leaving[instance] = load.leaving

    def choose(self, newcomer: Newcomer) -> int:
        """The one behind the last that takes requests."""
        for _ in self._leaving:
            self._next = (self._next + 1) % len(self._leaving)
            if not self._leaving[self._next]:
                break
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

    def choose(self, newcomer: Newcomer) -> int:
        """The one that ranks lowest."""
        while True:
            value, turn, instance = self._heap[0]
            if self._now[instance] == (value, turn):
                return instance
            heappop(self._heap)


class Serving:
    """The very rule that serves, which looks at every instance: O(instances) a choice."""

    def __init__(self, count: int) -> None:
        self._loads = {number: Load(1) for number in range(count)}

    def note(self, instance: int, load: Load) -> None:
        """Its numbers, as they will be weighed."""
        self._loads[instance] = load

    def choose(self, newcomer: Newcomer) -> int:
        """As :func:`headrace.placement.dispatch.choose_instance`."""
        return choose_instance(self._loads, newcomer) or 0


def _freeness_with_one_more(load: Load) -> float:
    """As :func:`headrace.placement.load.freeness` of the whole queue, without a copy: this is asked for after each step."""
    if load.leaving:
        return -math.inf
    used = load.held + min(load.queue, load.pages)
    return (load.pages - used) / (load.running + load.waiting + 1)


def _requests(load: Load) -> float:
    return math.inf if load.leaving else load.running + load.waiting


DISPATCHERS: Registry[Callable[[int], Dispatcher]] = Registry(
    "dispatch policy",
    {
        "freest": lambda count: Least(count, lambda load: -_freeness_with_one_more(load)),
        "fewest": lambda count: Least(count, _requests),
        "round_robin": RoundRobin,
        "serving": Serving,
    },
)
