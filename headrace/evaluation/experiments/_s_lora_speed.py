"""What adapters cost: streams over many of them against none, thousands registered against a few, and those that lie on disk."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headrace.engine.loop import Engine
from headrace.engine.wire import AdapterUse
from headrace.evaluation.experiment import Claim, Conditions, interleave
from headrace.evaluation.experiments._s_lora_setup import ATTENTION, Streams, preload, register, write_random, zipf
from headrace.evaluation.live_runs import LiveRun, Planned
from headrace.evaluation.machine import resident_bytes
from headrace.evaluation.statistics import median_ratio, percentile
from headrace.evaluation.trials import Bench
from headrace.evaluation.workload import arrival_times
from headrace.models.adapter import MODULES
from headrace.models.adapter_file import ADAPTER_WEIGHTS
from headrace.scheduling.settings import SchedulingSettings

STREAMS = 32
_RANK = 16
_EXPONENT = 1.0  # of the popularity of adapters
REGISTERED = 2000
_FEW = 5


def stream_claims(bench: Bench, conditions: Conditions, folder: Path) -> list[Claim]:
    """32 streams over 1, 4 and 32 adapters of rank 16, against none, in turns."""
    config = bench.built.model.config
    quick = conditions.quick
    attention = write_random(config, folder / "attention", [(_RANK, ATTENTION)] * STREAMS, conditions.seed)
    every = write_random(config, folder / "every", [(_RANK, MODULES)] * STREAMS, conditions.seed + 1000)
    streams = Streams(bench, 24, 24 if quick else 64, conditions.seed)
    cases = ((attention[:1], "1 adapter on q k v o", 1 / 1.15), (attention[:4], "4 adapters on q k v o", 1 / 1.25),
             (attention, "32 adapters on q k v o", 0.85), (every, "32 adapters on all modules", 0.85))  # fmt: skip
    variants = [partial(_streams, bench, streams, folders) for folders in ([], *(folders for folders, _, _ in cases))]
    _streams(bench, streams, attention[:1])  # warms up
    none, *others = interleave(variants, 2 if quick else 3, partial(conditions.report, "streams with adapters"))
    claims = []
    for (folders, which, asked), one in zip(cases, others, strict=True):
        name = f"streams_{len(folders)}{'_all' if folders is every else ''}"
        note = f"{statistics.median(one):.0f} and {statistics.median(none):.0f}"
        what = f"tokens/s of 32 streams, {which} of rank {_RANK} / none"
        claims.append(Claim(name, what, ">=", asked, median_ratio(one, none), "x", note))
    return claims


def _streams(bench: Bench, streams: Streams, folders: Sequence[Path]) -> float:
    engine = bench.engine(SchedulingSettings(prefix_reuse="off"))
    generations = register(engine, folders)
    preload(engine, generations)
    uses = [generations[index % len(generations)] if generations else None for index in range(STREAMS)]
    return streams.run(engine, uses).rate


def scale_claims(bench: Bench, conditions: Conditions, folder: Path) -> list[Claim]:
    """2,000 registered adapters against 5, under traffic of a Zipf law; what it takes to register and to remember them."""
    config = bench.built.model.config
    files = write_random(config, folder / "many", [(8, ATTENTION)] * (20 if conditions.quick else 100), conditions.seed + 2000)
    engine = bench.engine()
    began, before = time.perf_counter(), resident_bytes()
    generations = register(engine, files, REGISTERED // len(files))
    seconds, held = time.perf_counter() - began, (resident_bytes() - before) / 1e6
    assert engine.adapting is not None, "engines of a bench have adapters"
    assert len(generations) == REGISTERED, "all are registered"
    flat = _flatness(bench, files)
    size = engine.adapting.adapters.store.get(generations[0]).size
    engine.close()
    pool = REGISTERED * size // 32
    variants = [partial(_traffic, bench, files, count, pool, conditions) for count in (REGISTERED, _FEW)]
    many, few = interleave(variants, 1 if conditions.quick else 3, partial(conditions.report, "2,000 adapters"))
    rates = f"{statistics.median(one.rate for one in many):.0f} and {statistics.median(one.rate for one in few):.0f}"
    note = f"{many[0].loads} loads, {many[0].evictions} evictions; {len(files)} different files"
    return [
        Claim("scale", "tokens/s with 2,000 adapters registered / with 5, Zipf", ">=", 0.9,
              median_ratio([one.rate for one in many], [one.rate for one in few]), "x", f"{rates}; {note}"),
        Claim("bookkeeping", "resident memory of 2,000 registered adapters beyond their pages", "<=", 20, held, "MB"),
        Claim("start", "time to register 2,000 adapters", "<=", 2, seconds, "s"),
        Claim("flat", "time to register the last 100 of 2,000 / the first 100", "<=", 1.1, flat, "x"),
    ]  # fmt: skip


def _flatness(bench: Bench, files: Sequence[Path]) -> float:
    """The fastest of several turns, since registering reads a file."""
    ratios = []
    for _ in range(3):
        engine = bench.engine()
        times = []
        for number in range(REGISTERED // 100):
            began = time.thread_time()
            for index in range(100):
                assert engine.adapting is not None, "engines of a bench have adapters"
                engine.adapting.register(f"{number}.{index}", files[index % len(files)])
            times.append(time.thread_time() - began)
        engine.close()
        ratios.append(min(times[-3:]) / min(times[:3]))
    return statistics.median(ratios)


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Tokens a second, files read and adapters evicted in one run."""

    rate: float
    loads: int
    evictions: int


def _traffic(bench: Bench, files: Sequence[Path], count: int, pages: int, conditions: Conditions) -> _Traffic:
    engine = bench.engine(SchedulingSettings(prefix_reuse="off", max_running=STREAMS), pages)
    generations = register(engine, files, -(-count // len(files)))[:count]
    rng = random.Random(conditions.seed)
    requests = 32 if conditions.quick else 128
    uses = [generations[zipf(count, _EXPONENT, rng)] for _ in range(requests)]
    rate = Streams(bench, 32, 32, conditions.seed).run(engine, uses).rate
    assert engine.adapting is not None, "engines of a bench have adapters"
    gauges = engine.adapting.gauges()
    assert gauges is not None, "adapters were registered"
    return _Traffic(rate, gauges.loads, gauges.evictions)


def cold_claims(bench: Bench, conditions: Conditions, folder: Path) -> list[Claim]:
    """The first token of requests whose adapters lie on disk against others', by the clock at 30 % load."""
    config = bench.built.model.config
    count = 10 if conditions.quick else 48
    files = write_random(config, folder / "cold", [(_RANK, ATTENTION)] * count, conditions.seed + 3000)
    output = 16
    probe = Streams(bench, 96, output, conditions.seed)
    engine = bench.engine(SchedulingSettings(prefix_reuse="off"))
    alone = probe.run(engine, [None] * 8).seconds / 8  # a request's share of a busy machine
    variants = [partial(_first_tokens, bench, files, alone / 0.3, warm, conditions) for warm in (False, True)]
    cold, warm = interleave(variants, 1 if conditions.quick else 2, partial(conditions.report, "adapters on disk"))
    ours, others = (sorted(value for one in side for value in one) for side in (cold, warm))
    medians = f"{1e3 * statistics.median(ours):.0f} and {1e3 * statistics.median(others):.0f} ms"
    more = 1e3 * (percentile(ours, 99) - percentile(others, 99))
    return [
        Claim("cold", "median time to the first token, adapter on disk / in memory, at 30 % load", "<=", 1.3,
              statistics.median(ours) / statistics.median(others), "x", medians),
        Claim("cold_p99", "p99 of it, longer for adapters on disk", "<=", 50, more, "ms", f"{len(ours)} requests each"),
    ]  # fmt: skip


def _first_tokens(bench: Bench, files: Sequence[Path], gap: float, warm: bool, conditions: Conditions) -> list[float]:
    """Times to the first token; every request has another adapter, which is on disk or not."""
    engine: Engine = bench.engine(SchedulingSettings(prefix_reuse="off"))
    generations = register(engine, files)
    if warm:
        preload(engine, generations)
    else:
        for file in files:
            _forget(file / ADAPTER_WEIGHTS)
    rng = random.Random(conditions.seed)
    times = arrival_times(1 / gap, 1.0, rng)
    planned = [Planned(bench.prompt(96, rng), 16, next(times), adapters=(AdapterUse(generation),)) for generation in generations]
    with LiveRun(engine) as live:
        live.schedule(planned)
        live.run()
        return [timing.first for timing in live.timings]


def _forget(path: Path) -> None:
    """Let the system read the file from the disk again."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
