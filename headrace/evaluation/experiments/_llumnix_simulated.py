"""Policies over many instances in simulated time, and what a decision among them costs."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import replace

from headrace.evaluation.experiment import Claim
from headrace.placement.dispatch import Newcomer, choose_instance
from headrace.placement.load import Load
from headrace.placement.pairing import Pairing
from headrace.placement.scaling import Scaling, ScalingRule
from headrace.planning.cluster import Cluster, Exchange
from headrace.planning.dispatch import DISPATCHERS
from headrace.planning.instance import InstanceModel
from headrace.planning.targets import tail
from headrace.planning.workload import Lengths, Traffic
from headrace.scheduling.cost import Cost

_COUNTS = (1, 10, 100, 1000)
_CROWDED = Traffic(Lengths("lognormal", 100, 1.2), Lengths("lognormal", 100, 1.2), longest=2000)
_PAGES = 128
_FOUR = 4
_RATES = (0.8, 1.2, 1.6)  # requests a second and instance; the last one is more than memory lets through
_BURSTY = Traffic(Lengths("lognormal", 80, 0.8), Lengths("lognormal", 300, 1.0), shape=0.3, longest=4000)
_EIGHT = 8


def decision_claims() -> list[Claim]:
    """Microseconds of each decision over 1, 10, 100 and 1,000 instances."""
    rules: dict[str, Callable[[dict[int, Load]], object]] = {
        "dispatch": lambda loads: choose_instance(loads, Newcomer(8)),
        "pairing": lambda loads: Pairing().round(loads),
        "scaling": lambda loads: Scaling().look(loads),
    }
    claims = []
    for name, decide in rules.items():
        spent = [_microseconds(decide, count) for count in _COUNTS]
        note = ", ".join(f"{count:,}: {value:.1f} µs" for count, value in zip(_COUNTS, spent, strict=True))
        what = f"{name}: a decision over 1,000 instances against one over 100, of what linear is"
        claims.append(Claim(f"decision_{name}", what, "<=", 1.3, spent[-1] / spent[-2] / 10, "x", note))
    return claims


def _microseconds(decide: Callable[[dict[int, Load]], object], count: int) -> float:
    """The shortest of some rounds, over loads of all kinds."""
    rng = random.Random(count)
    loads = {
        number: Load(2000, rng.randrange(2000), rng.randrange(40), rng.randrange(3), rng.randrange(50), rng.randrange(100))
        for number in range(count)
    }
    repeats, best = max(3, 3000 // count), float("inf")
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(repeats):
            decide(loads)
        best = min(best, (time.perf_counter() - began) / repeats)
    return 1e6 * best


def policy_claims(cost: Cost, requests: int) -> list[Claim]:
    """What moves bring where memory lacks, and how many instances follow bursts, on simulated instances with these step times."""
    return [_crowded(cost, requests), *_urgent(cost, requests), *_scaled(cost, requests)]


def _run(models: list[InstanceModel], traffic: Traffic, rate: float, exchange: Exchange, requests: int) -> tuple[Cluster, float]:
    """The cluster afterwards, and P99 of the first token."""
    cluster = Cluster(models, DISPATCHERS.get("freest")(len(models)), exchange)
    outcome = cluster.run(traffic.arrivals(rate * len(models), requests, 3), None)
    return cluster, tail([one.ttft for one in outcome.served], 99)


def _crowded(cost: Cost, requests: int) -> Claim:
    models, notes, ratios = [InstanceModel(cost, _PAGES, 64, 0.15)] * _FOUR, [], []
    for rate in _RATES:
        (_, without), (moving, with_moves) = (
            _run(models, _CROWDED, rate, Exchange(balanced=balanced), requests) for balanced in (False, True)
        )
        ratios.append(without / with_moves)
        notes.append(f"{rate}/s each: {without:.1f} and {with_moves:.1f} s, {moving.crossings.done} moves")
    note = f"simulated, {_FOUR} instances of {_PAGES} pages, freest against freest with moves; {'; '.join(notes)}"
    return Claim(
        "crowded", "P99 of the first token without moves over with, best of three loads", ">=", 5.0, max(ratios), "x", note
    )


def _urgent(cost: Cost, requests: int) -> list[Claim]:
    """Every tenth request is urgent, or none is, under the same bursts (Gamma gaps with a coefficient of variation of 4)."""
    models = [InstanceModel(cost, _PAGES, 64, 0.15)] * _FOUR
    arrivals = list(replace(_CROWDED, shape=1 / 16).arrivals(1.2 * _FOUR, requests, 3))
    found: dict[tuple[bool, bool], tuple[float, float]] = {}
    for told in (False, True):
        marked = [replace(arrival, priority=int(told and at % 10 == 0)) for at, arrival in enumerate(arrivals)]
        cluster = Cluster(models, DISPATCHERS.get("serving")(_FOUR), Exchange(balanced=True))
        served = cluster.run(marked, None).served
        for high in (False, True):
            mine = [one for at, one in enumerate(served) if (at % 10 == 0) == high]
            whole = math.fsum(one.progress.last - one.sent for one in mine) / len(mine)
            found[told, high] = whole, math.fsum(one.ttft for one in mine) / len(mine)
    (plain, plain_first), (urgent, urgent_first) = found[False, True], found[True, True]
    note = f"simulated, a tenth is urgent; first token {plain_first:.2f} and {urgent_first:.2f} s"
    others = found[True, False][0] / found[False, False][0]
    return [
        Claim(
            "urgent_first",
            "mean time to the first token as one of many over as urgent",
            ">=",
            2.9,
            plain_first / urgent_first,
            "x",
            note,
        ),
        Claim("urgent_whole", "mean time of the whole request, the same", ">=", 1.2, plain / urgent, "x"),
        Claim("urgent_others", "mean time of the others' whole requests beside urgent ones over without", "<=", 1.05, others, "x"),
    ]


def _scaled(cost: Cost, requests: int) -> list[Claim]:
    models, rule = [InstanceModel(cost, 1000, 64, 0.15)] * _EIGHT, ScalingRule(least=1, most=_EIGHT, crowd=3.0)
    _, always = _run(models, _BURSTY, 0.25, Exchange(), requests)
    spent, first = [], []
    for moves in (True, False):
        cluster, ttft = _run(models, _BURSTY, 0.25, Exchange(scaling=rule, balanced=moves, moves=moves), requests)
        assert cluster.resizing is not None, "it follows the load"
        spent.append(cluster.resizing.spent / cluster.ended)
        first.append(ttft)
    note = f"simulated; {spent[0]:.1f} of {_EIGHT} on average, {spent[1]:.1f} where they are emptied by waiting"
    return [
        Claim("scaled", "instances that follow bursts, of all that there are", "<=", 70, 100 * spent[0] / _EIGHT, "%", note),
        Claim(
            "scaled_tail", "P99 of the first token, over that with all instances", "<=", 1.5, first[0] / always, "x",
            f"{first[0]:.2f} and {always:.2f} s",
        ),
    ]  # fmt: skip
