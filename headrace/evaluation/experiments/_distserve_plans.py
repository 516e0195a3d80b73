"""The ways of the experiment on roles in simulated time, with step times that were measured a moment before."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from headrace.engine.build import GAP_SLACK
from headrace.evaluation.experiment import Conditions
from headrace.evaluation.experiments._distserve_runs import STEP_TOKENS, THREADS, Site, Way
from headrace.evaluation.layout_costs import LayoutCost, measure_idle, rehearsal
from headrace.evaluation.layout_plans import COPY_RATE
from headrace.evaluation.rehearsal import rehearse
from headrace.placement.roles import Role
from headrace.planning.cluster import Outcome
from headrace.planning.instance import InstanceModel
from headrace.planning.search import Layout, Plan, Sample, goodput, run_at, search
from headrace.planning.targets import Targets, tail
from headrace.planning.workload import Lengths, TracedTraffic, Traffic
from headrace.scheduling.cost import Cost, StepTime
from headrace.scheduling.simulation import Arrival

_QUIET_RATE = 1e-3

WORKLOADS = {
    "chat": (Lengths("lognormal", 94, 0.7), Lengths("lognormal", 25, 0.5)),
    "code": (Lengths("lognormal", 43, 0.5), Lengths("lognormal", 24, 0.5)),
    "summarise": (Lengths("lognormal", 435, 0.5), Lengths("lognormal", 23, 0.5)),
}
"""Lengths as those of ShareGPT, HumanEval and LongBench, an eighth or a quarter as long."""


@dataclass(frozen=True, slots=True)
class Ways:
    """One instance with chunks, one with whole prompts first, and one for prompts beside one for tokens, on the same cores."""

    chunked: Way
    whole: Way
    split: Way


class Twin:
    """The ways in simulated time. ``one``, ``two``: what steps take at least, of one instance and of one of two beside the other.

    What they take as they serve is learnt by :meth:`rehearse`, again and again, since machines change their speed by the minute.
    """

    def __init__(self, conditions: Conditions) -> None:
        cores = sorted(os.sched_getaffinity(0))[:THREADS]
        self.one: LayoutCost = measure_idle(conditions.model, 1, THREADS, cores)
        self.two: LayoutCost = measure_idle(conditions.model, 2, 1, cores)
        self.ways = Ways(
            Way("chunked", ("all",), gap_ms=self._gap(self.one)),
            Way("whole", ("all",), "prompts_whole_first", self._gap(self.one)),
            Way("split", ("prefill", "decode"), gap_ms=self._gap(self.two)),
        )
        self._heard: dict[tuple[Role, ...], list[list[StepTime]]] = {}
        self._costs: dict[tuple[Role, ...], list[Cost]] = {}
        self._seeds = count(1)

    async def rehearse(self, site: Site, seconds: float) -> None:
        """Learn for so long from requests that are none of those which are foretold: others, of other lengths."""
        roles, seed = site.way.roles, next(self._seeds)
        heard = self._heard.setdefault(roles, [[] for _ in roles])
        fresh = await rehearse(site.group, rehearsal(self._idle(roles), seed, seconds), -1000 * seed)
        for number, steps in enumerate(fresh):
            heard[number] += steps
        self._costs.pop(roles, None)

    def _idle(self, roles: tuple[Role, ...]) -> LayoutCost:
        return self.one if len(roles) == 1 else self.two

    def _costs_of(self, roles: tuple[Role, ...]) -> list[Cost]:
        """By instance."""
        if roles not in self._costs:
            self._costs[roles] = [
                self._idle(roles).calibration.cost.refitted(own) for own in self._heard.get(roles, [[]] * len(roles))
            ]
        return self._costs[roles]

    def _gap(self, cost: LayoutCost) -> int:
        return max(1, round(1000 * GAP_SLACK * cost.calibration.cost.predict(STEP_TOKENS, STEP_TOKENS**2 // 2, 1)))

    def layout(self, way: Way) -> Layout:
        """What the way's engines are made of."""
        idle = self._idle(way.roles)
        assert way.gap_ms is not None, "ways of the experiment have a bound"
        policy = "fcfs" if way.policy == "fair" else way.policy  # nobody pays apart from others here
        pages = way.pool_mib * 2**20 // idle.page_bytes // len(way.roles)
        sends = idle.page_bytes / COPY_RATE
        models = tuple(
            InstanceModel(cost, pages, STEP_TOKENS, way.gap_ms / 1000, policy=policy, page_seconds=sends)
            for cost in self._costs_of(way.roles)
        )
        return Layout(way.name, models, THREADS // len(way.roles), roles=way.roles if len(way.roles) > 1 else ())

    def foretold(self, way: Way, arrivals: Sequence[Arrival]) -> Outcome:
        """What becomes of these requests."""
        traced = TracedTraffic(tuple(arrivals))
        return run_at(self.layout(way), Sample(traced, len(arrivals)), traced.rate)

    def promises(self, traffic: Traffic, share: float = 0.9) -> Targets:
        """5 and 2 times what a request alone gets from one instance on all cores."""
        alone = run_at(self.layout(self.ways.chunked), Sample(traffic, 100), _QUIET_RATE).served
        return Targets(
            5 * tail([one.ttft for one in alone], 50), 2 * tail([one.tpot for one in alone if one.output > 1], 50), share
        )

    def guess(self, traffic: Traffic) -> float:
        """Requests a second that one after the other would be served."""
        alone = run_at(self.layout(self.ways.chunked), Sample(traffic, 100), _QUIET_RATE).served
        return len(alone) / sum(one.progress.last - one.sent for one in alone)


@dataclass(frozen=True, slots=True)
class Compared:
    """Plans by way, and the multiple of the promises that each way would have needed at the rate that ``whole`` just keeps."""

    plans: dict[str, Plan]
    scales: dict[str, float]


def compare(twin: Twin, name: str, requests: int) -> Compared:
    """Goodput of every way for one kind of requests."""
    traffic = Traffic(*WORKLOADS[name], longest=4096)
    targets = twin.promises(traffic)
    sample = Sample(traffic, requests, 5)
    guess = twin.guess(traffic)
    ways = twin.ways
    plans = {way.name: goodput(twin.layout(way), sample, targets, guess) for way in (ways.chunked, ways.whole, ways.split)}
    rate = max(plans["whole"].goodput, 0.2 * guess)
    scales = {}
    for way in (ways.chunked, ways.whole, ways.split):
        served = run_at(twin.layout(way), sample, rate).served
        scales[way.name] = tail([max(one.ttft / targets.ttft, one.tpot / targets.tpot) for one in served], 90)
    return Compared(plans, scales)


def search_seconds(twin: Twin, requests: int) -> float:
    """Seconds of a whole search over the ways and four sizes of steps each."""
    began = time.perf_counter()
    traffic = Traffic(*WORKLOADS["summarise"], longest=4096)
    layouts = []
    for way in (twin.ways.chunked, twin.ways.split):
        layout = twin.layout(way)
        for tokens in (32, 64, 128, 256):
            models = tuple(replace(model, step_tokens=tokens) for model in layout.instances)
            layouts.append(replace(layout, name=f"{way.name} {tokens}", instances=models))
    search(layouts, Sample(traffic, requests), twin.promises(traffic), twin.guess(traffic), lambda *_: None)
    return time.perf_counter() - began
