"""The highest rate at which a layout keeps its promises, and which layout has the highest.

The search is that of "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving": simulate,
bisect over the rate, compare goodput. Changed here: both targets must be met by the same request, the simulated scheduler is
the one that serves, and plans that the sample can't tell apart are said to be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.placement.roles import Role, for_prompts
from headrace.planning.cluster import Exchange, Outcome, simulate_cluster
from headrace.planning.dispatch import DISPATCHERS
from headrace.planning.instance import InstanceModel
from headrace.planning.targets import Targets, attainment
from headrace.scheduling.simulation import Arrival

PRECISION = 0.03
"""Of the rate that is found."""
_MOST_PROBES = 24


class Requests(Protocol):
    """Traffic at any rate."""

    def arrivals(self, rate: float, count: int, seed: int) -> Iterator[Arrival]:
        """``count`` requests at ``rate`` a second."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to use the machine: ``instances``, one model each, of which one has ``threads``. ``roles``: of each; none: ``all``.
    ``balanced``: full ones give requests to free ones."""

    name: str
    instances: tuple[InstanceModel, ...]
    threads: int
    dispatch: str = "freest"
    roles: tuple[Role, ...] = ()
    balanced: bool = False

    @property
    def step_tokens(self) -> int:
        """Rows a step aims at."""
        return self.instances[0].step_tokens


@dataclass(frozen=True, slots=True)
class Sample:
    """How much is simulated: ``count`` requests drawn from ``seed``."""

    requests: Requests
    count: int = 1000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout with the highest rate at which it keeps ``share`` of its promises, and all rates that were tried."""

    layout: Layout
    goodput: float
    tried: tuple[tuple[float, float], ...]  # rate, attainment

    def at(self, rate: float) -> float:
        """Attainment at the tried rate nearest to ``rate``."""
        return min(self.tried, key=lambda pair: abs(pair[0] - rate))[1]


def run_at(layout: Layout, sample: Sample, rate: float) -> Outcome:
    """Simulate one rate."""
    count = len(layout.instances)
    prompts = for_prompts(range(count), dict(enumerate(layout.roles))) if layout.roles else range(count)
    dispatcher = DISPATCHERS.get(layout.dispatch)(len(prompts))
    arrivals = sample.requests.arrivals(rate, sample.count, sample.seed)
    return simulate_cluster(layout.instances, dispatcher, arrivals, exchange=Exchange(layout.roles, layout.balanced))


def goodput(layout: Layout, sample: Sample, targets: Targets, start: float) -> Plan:
    """Bisect for the highest rate at which ``targets.share`` of requests keep both; ``start``: a first guess.

    0 when not even a hundredth of the guess can be kept.
    """
    tried: dict[float, float] = {}

    def kept(rate: float) -> bool:
        tried[rate] = attainment(run_at(layout, sample, rate), targets)
        return tried[rate] >= targets.share

    low, high = _bracket(kept, start)
    while high - low > PRECISION * high and low > 0 and len(tried) < _MOST_PROBES:
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return Plan(layout, low, tuple(sorted(tried.items())))


def _bracket(kept: Callable[[float], bool], start: float) -> tuple[float, float]:
    """A rate that is kept and one that is not, within a factor of two."""
    if kept(start):
        low = start
        while kept(2 * low):
            low *= 2
        return low, 2 * low
    high = start
    while high > start / 100:
        if kept(high / 2):
            return high / 2, high
        high /= 2
    return 0.0, high


def search(
    layouts: Sequence[Layout], sample: Sample, targets: Targets, start: float, report: Callable[[str, int, int], None]
) -> list[Plan]:
    """Plans of all layouts, the highest goodput first; of equal ones (within the precision) the one with the fewest parts."""
    plans: list[Plan] = []
    for number, layout in enumerate(layouts):
        report(f"simulating {layout.name}", number, len(layouts))
        guess = max((plan.goodput for plan in plans), default=0.0) or start
        plans.append(goodput(layout, sample, targets, guess))
    best = max(plan.goodput for plan in plans)
    return sorted(
        plans,
        key=lambda plan: (plan.goodput < (1 - PRECISION) * best, _parts(plan.layout) if plan.goodput else (0, 0), -plan.goodput),
    )


def _parts(layout: Layout) -> tuple[int, int]:
    """How much there is to understand in a layout: instances, and kinds of them."""
    return len(layout.instances), len(set(layout.roles))
