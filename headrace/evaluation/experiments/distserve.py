"""Prompts computed in one instance and tokens made in another, against one instance that does both: real engines, and simulated."""

from __future__ import annotations

import asyncio
import math
import statistics
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, Series
from headrace.evaluation.experiments._distserve_plans import Compared, Twin, compare, search_seconds
from headrace.evaluation.experiments._distserve_runs import Site, Way, burst, exchange, same_answers, scale_of, ttft_of
from headrace.evaluation.rehearsal import drive
from headrace.planning.cluster import Outcome
from headrace.planning.targets import Targets, attainment, tail
from headrace.planning.workload import Lengths, Traffic

_PARTS = 6
_SHARES = (0.35, 0.6, 0.85)
"""Loads, as parts of what one request after the other would be."""
_REHEARSED = 1.5  # seconds before each of them
_LIVE = Traffic(Lengths("lognormal", 64, 0.7), Lengths("lognormal", 12, 0.5), longest=4096)


@dataclass(frozen=True, slots=True)
class _Scale:
    """``seconds`` of each load, which is repeated so many ``times``."""

    prompts: int
    output: int
    seconds: float
    times: int
    simulated: int
    workloads: tuple[str, ...]
    burst: int


_QUICK = _Scale(12, 8, 3.5, 1, 100, ("summarise",), 12)
_FULL = _Scale(60, 24, 8.0, 3, 400, ("chat", "code", "summarise"), 24)


@dataclass(frozen=True, slots=True)
class _Run:
    """One way under one load, foretold, and real: the same requests several times."""

    way: Way
    rate: float
    repeats: tuple[Outcome, ...]
    foretold: Outcome

    @property
    def real(self) -> Outcome:
        """All repeats as one."""
        return Outcome([one for outcome in self.repeats for one in outcome.served])

    @property
    def ttft(self) -> float:
        """P99 of the first token; the median over the repeats, because one hiccup of the machine decides that of a single one."""
        return statistics.median(map(ttft_of, self.repeats))

    @property
    def ttft_error(self) -> float:
        """Per cent by which the foretold P99 of the first token misses."""
        return 100 * abs(ttft_of(self.foretold) / self.ttft - 1)


def run(conditions: Conditions) -> Findings:
    """All claims, on two cores."""
    return asyncio.run(_run(conditions, _QUICK if conditions.quick else _FULL))


async def _run(conditions: Conditions, scale: _Scale) -> Findings:
    conditions.report("measuring steps", 0, _PARTS)
    twin = Twin(conditions)
    async with AsyncExitStack() as stack:
        ways = (twin.ways.chunked, twin.ways.whole, twin.ways.split)
        chunked, whole, split = [await stack.enter_async_context(Site(conditions, way)) for way in ways]
        conditions.report("the same requests in one engine and handed over", 1, _PARTS)
        claims = await _exact(chunked, split, scale)
        conditions.report("three ways under three loads, in turns", 2, _PARTS)
        runs = await _loads(twin, (chunked, whole, split), scale)
        claims += _handing(split, [one.real for one in runs if one.way.name == "split"])
        conditions.report("roles exchanged under load", 3, _PARTS)
        claims += await _exchanged(split, scale)
    conditions.report("a burst into a small pool", 4, _PARTS)
    claims += await _pressed(conditions, twin, scale)
    conditions.report("simulating", 5, _PARTS)
    compared = {name: compare(twin, name, scale.simulated) for name in scale.workloads}
    seconds = search_seconds(twin, min(300, scale.simulated))
    claims += [*_simulated(compared), *_foretold(runs, twin.promises(_LIVE))]
    claims.append(Claim("search", "a search over ways and sizes of steps", "<=", 10, seconds, "s"))
    return Findings(tuple(claims), _curves(compared))


async def _exact(chunked: Site, split: Site, scale: _Scale) -> list[Claim]:
    lengths = [16 * (1 + number) + number % 3 - 1 for number in range(scale.prompts)]
    exact = await same_answers(chunked, split, lengths, scale.output)
    note = f"{exact.handoffs} handed over; prompts of 16k - 1, 16k, 16k + 1; 2 threads against 1 + 1"
    return [
        Claim("exact", "requests handed over give the bits of one engine", "==", 100.0, exact.same, "% same bits", note),
        Claim("once", "tokens sent twice or not at all", "==", 0, exact.beyond, "tokens"),
        Claim("strays", "outputs of an engine that did not have the request", "==", 0, split.group.strays, "outputs"),
    ]


async def _loads(twin: Twin, sites: tuple[Site, Site, Site], scale: _Scale) -> list[_Run]:
    """Every load in every way, between rehearsals with other requests, of which the foretelling knows."""
    chunked, whole, split = sites
    guess = twin.guess(_LIVE)
    loads = {
        share: tuple(_LIVE.arrivals(share * guess, round(share * guess * scale.seconds), 7 + at))
        for at, share in enumerate(_SHARES)
    }
    real: dict[tuple[Way, float], list[Outcome]] = {}
    for again in range(scale.times):
        for at, (share, arrivals) in enumerate(loads.items()):
            turn = (chunked, whole, split) if share == _SHARES[-1] else (chunked, split)  # whole prompts only where it matters
            for site in turn if (at + again) % 2 == 0 else turn[::-1]:
                if site is not whole:
                    await twin.rehearse(site, _REHEARSED)
                real.setdefault((site.way, share), []).append(await drive(site.group, arrivals, 1000 * at))
    return [_Run(way, share * guess, tuple(outcomes), twin.foretold(way, loads[share])) for (way, share), outcomes in real.items()]


def _handing(split: Site, outcomes: list[Outcome]) -> list[Claim]:
    still = split.group.relocation.counts.last_still
    total = sum(one.progress.last - one.sent for outcome in outcomes for one in outcome.served)
    spent = sum(still[-sum(len(outcome.served) for outcome in outcomes) :])
    note = "pages go over a socket, copied and summed; a shared pool, where nothing is copied, is not there"
    what = "time that requests stand still between two engines"
    return [
        Claim("still_share", what, "<=", 2.0, 100 * spent / total, "% of their time", note),
        Claim("still_p95", "the same, 95th percentile", "<=", 30.0, 1000 * tail(still, 95), "ms"),
    ]


async def _exchanged(split: Site, scale: _Scale) -> list[Claim]:
    found = await exchange(split, 6, 100, 8 * scale.output)
    return [
        Claim("roles", "roles exchanged under load: until everybody is in place", "<=", 30, found.seconds, "s"),
        Claim("roles_exact", "requests that differ or are lost by it", "==", 0, found.differ, "requests"),
        Claim("roles_reload", "processes that started for it", "==", 0, found.started, "processes"),
    ]


async def _pressed(conditions: Conditions, twin: Twin, scale: _Scale) -> list[Claim]:
    async with Site(conditions, replace(twin.ways.split, pool_mib=64)) as small:
        found = await burst(small, scale.burst, (200, 60))
    note = f"at most {found.prompts} waited where prompts are computed: what is not pulled presses back"
    return [
        Claim("pull", "requests of a burst that wait for room where tokens are made", "==", 0, found.tokens, "requests", note),
        Claim("pull_done", "requests of it that got all their tokens", "==", 100.0, found.finished, "%"),
    ]


def _simulated(compared: dict[str, Compared]) -> list[Claim]:
    claims = []
    for name, one in compared.items():
        best = {way: plan.goodput for way, plan in one.plans.items()}
        over = _ratio(best["split"], best["chunked"])
        note = f"simulated; over one with chunks {over:.2f}x: without prompts a core is idle, and a prompt has half the threads"
        ratio = _ratio(best["split"], best["whole"])
        asked = 2.0 if name == "summarise" else 1.0
        claims.append(Claim(f"goodput_{name}", f"{name}: split over whole prompts first, goodput", ">=", asked, ratio, "x", note))
        tighter, asked = _ratio(one.scales["whole"], one.scales["split"]), 4.0 if name == "summarise" else 1.4
        what = f"{name}: promises that split keeps over those of whole prompts first, at one rate"
        claims.append(Claim(f"tighter_{name}", what, ">=", asked, tighter, "x", "simulated"))
    return claims


def _foretold(runs: list[_Run], targets: Targets) -> list[Claim]:
    found = [one for one in runs if one.way.name != "whole"]
    errors = [one.ttft_error for one in found]
    kept = [(one, 100 * attainment(one.foretold, targets), 100 * attainment(one.real, targets)) for one in found]
    note = "; ".join(f"{_named(one)}: {ttft_of(one.foretold):.2f} for {one.ttft:.2f} s" for one in found)
    shares = "; ".join(f"{_named(one)}: {said:.0f} for {was:.0f} % of {len(one.real.served)}" for one, said, was in kept)
    last = {one.way.name: one for one in runs if one.rate == max(one.rate for one in runs)}
    choice = min(("chunked", "split"), key=lambda way: scale_of(last[way].foretold, targets))
    real = {way: statistics.median(scale_of(each, targets) for each in one.repeats) for way, one in last.items()}
    regret = real[choice] / min(real["chunked"], real["split"])
    scales = ", ".join(f"{way} {value:.2f}" for way, value in sorted(real.items()))
    first, chosen = "P99 of the first token, foretold against real", f"the best as foretold ({choice}) over the best in reality"
    return [
        Claim("simulator_median", f"{first}, median error", "<=", 15, statistics.median(errors), "%", note),
        Claim("simulator_worst", f"{first}, worst of the loads", "<=", 15, max(errors), "%"),
        Claim(
            "simulator_kept", "requests that keep both promises, worst error", "<=", 2,
            max(abs(said - was) for _, said, was in kept), "points", shares,
        ),
        Claim("choice", chosen, "<=", 1.05, regret, "x", f"needed multiples of the promises at the highest load: {scales}"),
        Claim(
            "tighter", "real: promises of whole prompts first over those of split", ">=", 1.4, real["whole"] / real["split"], "x"
        ),
    ]  # fmt: skip


def _named(one: _Run) -> str:
    return f"{one.way.name} {one.rate:.1f}/s"


def _curves(compared: dict[str, Compared]) -> tuple[Series, ...]:
    return tuple(
        Series(f"{name}, {way}", "requests/s", "share that keeps both promises", *_columns(plan.tried))
        for name, one in compared.items()
        for way, plan in one.plans.items()
    )


def _columns(tried: tuple[tuple[float, float], ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(rate for rate, _ in tried), tuple(share for _, share in tried)


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.nan if not one else math.inf


EXPERIMENT = Experiment(
    name="distserve",
    title="Prompts in one engine and tokens in another: the same bits, short hand-offs, and a planner that says when it pays.",
    source="DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving (OSDI 2024)",
    minutes=5,
    run=run,
)
