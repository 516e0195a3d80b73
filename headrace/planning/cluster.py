"""Many simulated instances behind one dispatcher: a loop over events, in order of their time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from headrace.errors import HeadraceError
from headrace.placement.dispatch import Newcomer
from headrace.placement.roles import Role, for_prompts
from headrace.placement.scaling import ScalingRule
from headrace.planning.balancing import ROUND_SECONDS, Balancing
from headrace.planning.crossings import Crossings
from headrace.planning.dispatch import Dispatcher
from headrace.planning.handing import Handing
from headrace.planning.instance import InstanceModel, Progress, SimulatedInstance
from headrace.planning.resizing import LOOK_SECONDS, Resizing
from headrace.scheduling.item import Item, ItemKind
from headrace.scheduling.simulation import Arrival

_EVERY: Role = "all"


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


@dataclass(frozen=True, slots=True)
class Exchange:
    """What instances do with each other's requests, and how many there are.

    ``roles``: of each; then the dispatcher chooses among those that take prompts (:func:`headrace.placement.roles.for_prompts`).
    ``balanced``: full ones give requests to free ones. ``scaling``: between its ``least`` and all of them run, as the load wants;
    ``moves``: who goes is emptied by moves, else it waits for its requests' ends.
    """

    roles: tuple[Role, ...] = ()
    balanced: bool = False
    scaling: ScalingRule | None = None
    moves: bool = True


_NONE = Exchange()


def simulate_cluster(
    models: Sequence[InstanceModel],
    dispatcher: Dispatcher,
    arrivals: Iterable[Arrival],
    report: Callable[[int], None] | None = None,
    exchange: Exchange = _NONE,
) -> Outcome:
    """Run all arrivals (in order of time) to their end on ``models``. ``report`` is told how many have been sent, now and then."""
    return Cluster(models, dispatcher, exchange).run(arrivals, report)


class Cluster:
    """Instances in simulated time, behind one dispatcher. Use once."""

    def __init__(self, models: Sequence[InstanceModel], dispatcher: Dispatcher, exchange: Exchange = _NONE) -> None:
        self.instances = [SimulatedInstance(model) for model in models]
        self.outcome = Outcome()
        self._dispatcher = dispatcher
        self._events: list[tuple[float, int, int]] = []  # time, instance, version; instance -1: the time of a number in _later
        self._later: dict[int, Callable[[float], None]] = {}
        self._borders: dict[int, list[Callable[[float], None]]] = {}
        self._numbers = 0
        self._waits = True  # arrivals are to come
        roles = exchange.roles
        role = dict(enumerate(roles)) if roles else dict.fromkeys(range(len(models)), _EVERY)
        self._places = for_prompts(range(len(models)), role)
        self._rank = {place: rank for rank, place in enumerate(self._places)}  # as the dispatcher names them
        self.crossings = Crossings(self)
        self.handing = Handing(self, self.crossings, role) if set(role.values()) != {"all"} else None
        self.balancing = Balancing(self, self.crossings) if exchange.balanced else None
        if self.balancing is not None:
            self._every(ROUND_SECONDS, self.balancing.look)
        self.resizing = (
            Resizing(self, self.crossings, exchange.scaling, moves=exchange.moves) if exchange.scaling is not None else None
        )
        if self.resizing is not None:
            self._every(LOOK_SECONDS, self.resizing.look)
        for place in range(len(self.instances)):
            self.tell(place)

    def run(self, arrivals: Iterable[Arrival], report: Callable[[int], None] | None) -> Outcome:
        """Everything to its end."""
        outcome, events, instances, handing, borders = self.outcome, self._events, self.instances, self.handing, self._borders
        source = iter(arrivals)
        coming = next(source, None)
        self._waits = coming is not None
        while coming is not None or events:
            outcome.events += 1
            if coming is not None and (not events or coming.time <= events[0][0]):
                self._arrive(coming)
                coming = next(source, None)
                self._waits = coming is not None
                if report is not None and len(outcome.served) % 1024 == 0:
                    report(len(outcome.served))
                continue
            now, index, version = heappop(events)
            if index < 0:
                self._later.pop(version)(now)
                continue
            instance = instances[index]
            if version != instance.version:
                continue
            begun, now = instance.end()
            if borders:
                for action in borders.pop(index, ()):
                    action(now)
            if handing is not None:
                handing.ended(index, begun, now)
            self._go_on(index, now)
        return outcome

    @property
    def ended(self) -> float:
        """When the last request got its last token, in seconds of simulated time."""
        return max((one.progress.last for one in self.outcome.served), default=0.0)

    def at_border(self, index: int, now: float, action: Callable[[float], None]) -> None:
        """Do this between two steps of an instance: now, or when its step has ended."""
        instance = self.instances[index]
        if instance.idle:
            action(now)
            if instance.idle:
                self._go_on(index, now)
            return
        self._borders.setdefault(index, []).append(action)
        self._push(index, instance.hurry(now))

    def later(self, time: float, action: Callable[[float], None]) -> None:
        """Do this at that time."""
        self._numbers += 1
        self._later[self._numbers] = action
        heappush(self._events, (time, -1, self._numbers))

    def tell(self, index: int) -> None:
        """Tell the dispatcher an instance's numbers."""
        self._note(index, self.instances[index])

    def _every(self, seconds: float, look: Callable[[float], None]) -> None:
        """Look now and then, as long as there is something to serve."""

        def again(now: float) -> None:
            look(now)
            if self._waits or any(instance.live for instance in self.instances) or self.crossings.pending:
                self.later(now + seconds, again)

        self.later(seconds, again)

    def _go_on(self, index: int, now: float) -> None:
        instance = self.instances[index]
        self._push(index, instance.begin(now))
        self._note(index, instance)

    def _push(self, index: int, time: float | None) -> None:
        if time is not None:
            heappush(self._events, (time, index, self.instances[index].version))

    def _note(self, index: int, instance: SimulatedInstance) -> None:
        rank = self._rank.get(index)
        if rank is not None:
            self._dispatcher.note(rank, instance.load())

    def _arrive(self, arrival: Arrival) -> None:
        pages = -(-(arrival.prompt + 1) // self.instances[0].model.page_tokens)
        outcome, index = self.outcome, self._places[self._dispatcher.choose(Newcomer(pages, urgent=arrival.priority > 0))]
        instance, number = self.instances[index], len(outcome.served)
        limit = arrival.output if arrival.max_tokens is None else arrival.max_tokens
        item = Item(number, ItemKind.GENERATE, [1] * arrival.prompt, arrival.prompt, limit, arrival.time, priority=arrival.priority)
        progress = Progress(arrival.output)
        try:
            following = instance.add(item, progress, arrival.time)
        except HeadraceError:
            outcome.refused += 1
            return
        outcome.served.append(Served(arrival.time, arrival.output, index, progress))
        self._push(index, following)
        self._note(index, instance)
