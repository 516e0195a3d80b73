"""Who goes first: requests whose adapters run already, those whose promise can still be kept, adapters as parts of a share."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from headrace.evaluation.experiment import Claim, Conditions, interleave
from headrace.evaluation.experiments._s_lora_setup import ATTENTION, Streams, preload, register, write_random
from headrace.evaluation.live_runs import LiveRun
from headrace.evaluation.statistics import median_ratio
from headrace.evaluation.trials import Bench
from headrace.evaluation.workload import arrival_times
from headrace.models.adapter import MODULES
from headrace.scheduling.settings import SchedulingSettings

_PLACES = 4
_OVERLOAD = 3.0


def policy_claims(bench: Bench, conditions: Conditions, folder: Path) -> list[Claim]:
    """Each with and without, in turns."""
    return [
        *_clustering(bench, conditions, folder),
        *_promises(bench, conditions),
        _shares(bench, conditions, folder),
    ]


def _clustering(bench: Bench, conditions: Conditions, folder: Path) -> list[Claim]:
    """Requests for big adapters in turns, so that the order of arrival never has two for one together."""
    files = write_random(bench.built.model.config, folder / "big", [(64, MODULES)] * 8, conditions.seed + 4000)
    streams = Streams(bench, 16, 24, conditions.seed)
    count = 32 if conditions.quick else 96
    variants = [partial(_clustered, bench, files, streams, count, passing) for passing in (16, 0)]
    ours, plain = interleave(variants, 1 if conditions.quick else 3, partial(conditions.report, "clustering"))
    note = f"{statistics.median(one[0] for one in ours):.0f} and {statistics.median(one[0] for one in plain):.0f}"
    return [
        Claim("clustering", "tokens/s of 4 places over 8 adapters of rank 64, clustered / in order", ">=", 1.2,
              median_ratio([one[0] for one in ours], [one[0] for one in plain]), "x", note),
        Claim("passed", "most often that one request was passed by later ones", "<=", 16, max(one[1] for one in ours), "times"),
    ]  # fmt: skip


def _clustered(bench: Bench, files: Sequence[Path], streams: Streams, count: int, passing: int) -> tuple[float, int]:
    """(tokens a second, the most often that anybody was passed)."""
    engine = bench.engine(SchedulingSettings(prefix_reuse="off", max_running=_PLACES, adapter_passing=passing))
    generations = register(engine, files)
    preload(engine, generations)
    most = 0
    with LiveRun(engine) as live:
        live.schedule(streams.planned([generations[index % len(generations)] for index in range(count)]))

        def watch() -> bool:
            nonlocal most
            most = max([most, *(item.passed for item in engine.scheduler.items)])
            return False

        return live.run(until=watch).rate, most


def _promises(bench: Bench, conditions: Conditions) -> list[Claim]:
    """Three times what the machine can do, by the clock: first tokens that come as promised."""
    streams = Streams(bench, 96, 8, conditions.seed)
    each = streams.run(bench.engine(SchedulingSettings(prefix_reuse="off")), [None] * 8).seconds / 8
    promised = max(2, round(6e3 * each))
    count = 30 if conditions.quick else 90
    variants = [partial(_kept, bench, streams, each, count, milliseconds) for milliseconds in (promised, None)]
    kept, without = interleave(
        [partial(variant, promised / 1e3) for variant in variants], 1 if conditions.quick else 3,
        partial(conditions.report, "promised first tokens"),
    )  # fmt: skip
    own, others = (statistics.median(one[0] for one in side) for side in (kept, without))
    note = f"{own:.0f} and {others:.0f} % of {count} requests, promise {promised} ms, {kept[0][1]} refused"
    return [
        Claim("promises", "first tokens that came as promised under three times the load, refusing early / never", ">=", 1.5,
              own / others if others else float("inf"), "x", note)
    ]  # fmt: skip


def _kept(bench: Bench, streams: Streams, each: float, count: int, promised_ms: int | None, limit: float) -> tuple[float, int]:
    """(percent of first tokens within ``limit`` and what the request takes by itself, requests refused)."""
    engine = bench.engine(SchedulingSettings(prefix_reuse="off", max_running=8, first_token_ms=promised_ms))
    times = arrival_times(_OVERLOAD / each, 1.0, random.Random(7))
    with LiveRun(engine) as live:
        live.schedule([replace(one, at=next(times)) for one in streams.planned([None] * count)])
        live.run()
        good = sum(bool(timing.times) and timing.first <= limit + 2 * each for timing in live.timings)
        return 100 * good / count, sum(timing.refused for timing in live.timings)


def _shares(bench: Bench, conditions: Conditions, folder: Path) -> Claim:
    """One adapter of a key asks for eight times as much as the other; first tokens of the other."""
    files = write_random(bench.built.model.config, folder / "shares", [(8, ATTENTION)] * 2, conditions.seed + 5000)
    variants = [partial(_light, bench, files, conditions, among) for among in ("adapters", "keys")]
    ours, plain = interleave(variants, 1 if conditions.quick else 3, partial(conditions.report, "adapters of one key"))
    note = f"{1e3 * statistics.median(ours):.0f} and {1e3 * statistics.median(plain):.0f} ms"
    what = "mean time to the first token of an adapter beside a busier one of the same key, keys alike / adapters alike"
    return Claim("shares", what, ">=", 1.5, median_ratio(plain, ours), "x", note)


def _light(bench: Bench, files: Sequence[Path], conditions: Conditions, among: str) -> float:
    engine = bench.engine(SchedulingSettings(prefix_reuse="off", max_running=_PLACES, fair_among=among))
    heavy, light = register(engine, files)
    uses = [heavy] * 40 + [light] * 5
    with LiveRun(engine) as live:
        live.schedule(Streams(bench, 128, 8, conditions.seed).planned(uses))
        live.run()
        return statistics.fmean(timing.first for timing in live.timings if timing.planned.adapters[0].generation == light)
