"""Many simulated instances behind one dispatcher: a loop over events, in order of their time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from headrace.errors import HeadraceError
from headrace.placement.load import Load
from headrace.planning.dispatch import Dispatcher
from headrace.planning.instance import InstanceModel, Progress, SimulatedInstance
from headrace.scheduling.item import Item, ItemKind, ItemState
from headrace.scheduling.simulation import Arrival


@dataclass(slots=True)
class Served:
    """What became of one arrival. Times in seconds from its sending; NaN when it never got a token."""

    sent: float
    output: int
    instance: int
    progress: Progress

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.progress.first - self.sent

    @property
    def tpot(self) -> float:
        """Mean seconds from one token to the next; 0 for a single token."""
        return (self.progress.last - self.progress.first) / max(1, self.output - 1)

    @property
    def longest_gap(self) -> float:
        """Longest time between two tokens."""
        return self.progress.longest_gap


@dataclass(slots=True)
class Outcome:
    """All arrivals in their order; ``refused`` could never fit one instance. ``events``: how many the simulation handled."""

    served: list[Served] = field(default_factory=list)
    refused: int = 0
    events: int = 0


def simulate_cluster(
    models: Sequence[InstanceModel],
    dispatcher: Dispatcher,
    arrivals: Iterable[Arrival],
    report: Callable[[int], None] | None = None,
) -> Outcome:
    """Run all arrivals (in order of time) to their end on ``models``. ``report`` is told how many have been sent, now and then."""
    instances = [SimulatedInstance(model) for model in models]
    for index, instance in enumerate(instances):
        dispatcher.note(index, _load(instance))
    outcome = Outcome()
    events: list[tuple[float, int, int]] = []  # time, instance, version
    source = iter(arrivals)
    coming = next(source, None)
    while coming is not None or events:
        outcome.events += 1
        if coming is not None and (not events or coming.time <= events[0][0]):
            _arrive(instances, dispatcher, coming, outcome, events)
            coming = next(source, None)
            if report is not None and len(outcome.served) % 1024 == 0:
                report(len(outcome.served))
            continue
        _, index, version = heappop(events)
        instance = instances[index]
        if version != instance.version:
            continue
        _, following = instance.end()
        if following is not None:
            heappush(events, (following, index, instance.version))
        dispatcher.note(index, _load(instance))
    return outcome


def _arrive(
    instances: list[SimulatedInstance],
    dispatcher: Dispatcher,
    arrival: Arrival,
    outcome: Outcome,
    events: list[tuple[float, int, int]],
) -> None:
    index = dispatcher.choose()
    instance, number = instances[index], len(outcome.served)
    limit = arrival.output if arrival.max_tokens is None else arrival.max_tokens
    item = Item(number, ItemKind.GENERATE, [1] * arrival.prompt, arrival.prompt, limit, arrival.time, priority=arrival.priority)
    progress = Progress(arrival.output)
    try:
        following = instance.add(item, progress, arrival.time)
    except HeadraceError:
        outcome.refused += 1
        return
    outcome.served.append(Served(arrival.time, arrival.output, index, progress))
    if following is not None:
        heappush(events, (following, index, instance.version))
    dispatcher.note(index, _load(instance))


def _load(instance: SimulatedInstance) -> Load:
    scheduler = instance.scheduler
    pool, waiting = scheduler.pool, scheduler.waiting
    queue = 0
    if waiting:
        queue = sum(pool.pages_for(len(item.tokens)) for item in scheduler.items if item.state is ItemState.WAITING)
    return Load(pool.total, pool.held + pool.reserved, scheduler.running, waiting, queue=queue)
