"""FastSwitch: preempted requests leave for the disk by runs, asynchronously, and come back; against single pages, in line."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from headrace.engine.build import PIECE_BYTES
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, interleave
from headrace.evaluation.experiments import _fastswitch_runs as runs
from headrace.evaluation.experiments._fastswitch_moves import page_seconds, steps_beside
from headrace.evaluation.experiments._fastswitch_runs import Run, Talk
from headrace.evaluation.statistics import median_ratio
from headrace.evaluation.trials import Bench, SwapVariant
from headrace.memory.disk_tier import slot_bytes
from headrace.memory.page_pool import PagePool
from headrace.scheduling.priority_changes import PriorityChange, markov_priorities, random_priorities
from headrace.scheduling.settings import SchedulingSettings

_RUNS = SwapVariant()
_AUTO = SwapVariant("auto")
_EVERY, _QUICK_EVERY = 25, 16  # steps between changes of priority
_STEP_TOKENS = 32  # else the longest gaps are steps with much of another prompt, however pages move


@dataclass(frozen=True, slots=True)
class _Shape:
    """``count`` conversations of ``turns`` turns; the first thing said has about ``opening`` tokens, all others ``said``."""

    count: int
    turns: int
    opening: int
    said: int
    answer: int


@dataclass(frozen=True, slots=True)
class _Load:
    """Conversations that need three times the pool."""

    bench: Bench
    conditions: Conditions
    talks: tuple[Talk, ...]
    needed: int

    @property
    def every(self) -> int:
        """Steps between changes of priority."""
        return _QUICK_EVERY if self.conditions.quick else _EVERY

    def run(
        self,
        pattern: PriorityChange | None,
        swap: SwapVariant | None,
        every: int = 0,
        share: float = 1 / 3,
        policy: str = "priority",
    ) -> Run:
        """One run on a pool that holds ``share`` of what the conversations need."""
        engine = self.bench.engine(SchedulingSettings(policy=policy, step_tokens=_STEP_TOKENS), int(self.needed * share), swap)
        return runs.run(engine, self.talks, pattern, every or self.every, self.conditions.seed)


def run(conditions: Conditions) -> Findings:
    """All measurements on one loaded model."""
    quick = conditions.quick
    with Bench(conditions) as bench:
        small = _conversations(bench, conditions, _Shape(4, 2, 40, 12, 8) if quick else _Shape(12, 3, 120, 30, 24))
        load = _conversations(bench, conditions, _Shape(6, 2, 320, 32, 32) if quick else _Shape(12, 4, 400, 60, 48))
        claims = [
            *_exact(small),
            *_pieces(load),
            *_switches(load),
            *_reuse(load),
            *_rescue(small),
            *_fair(load),
            *_idle(small),
            _beside(bench, load),
        ]
    return Findings(tuple(claims))


def _conversations(bench: Bench, conditions: Conditions, shape: _Shape) -> _Load:
    rng = random.Random(conditions.seed)
    said = [shape.opening] + [shape.said] * (shape.turns - 1)
    talks = tuple(
        Talk(number, tuple(tuple(bench.prompt(rng.randrange(3 * n // 4, 5 * n // 4), rng)) for n in said), shape.answer)
        for number in range(shape.count)
    )
    page = bench.built.chain.page_layout.tokens
    return _Load(bench, conditions, talks, sum(-(-talk.length // page) for talk in talks))


def _exact(load: _Load) -> list[Claim]:
    """A third of the running requests is sent away every k steps, on a third of the pages."""
    undisturbed = load.run(None, None, share=2.0)
    claims = []
    for every in (1, 7, 25):
        load.conditions.report("exactness", every, 25)
        found = load.run(runs.preempt_and_reorder, _RUNS, every)
        same = sum(found.traces.get(key) == trace for key, trace in undisturbed.traces.items())
        what = f"tokens and logprobs with requests sent to disk every {every} steps, as undisturbed"
        note = f"{found.preemptions} preemptions, {found.moves.written_pages} pages written, {found.moves.rescues} rescues"
        claims.append(Claim(f"exact_{every}", what, "==", 100, 100 * same / len(undisturbed.traces), "% same bits", note))
    return claims


def _switches(load: _Load) -> list[Claim]:
    """Random priorities on a third of the pages: by runs beside the steps; each layer's keys and values of each page in line, as
    engines do whose caches are split so; and computing again."""
    quick = load.conditions.quick
    layers = SwapVariant(run_pages=1, reuse=False, synchronous=True, pieces=2 * load.bench.built.model.config.layers)
    variants = [partial(load.run, random_priorities, swap) for swap in (_RUNS, layers, None)]
    report = partial(load.conditions.report, "changing priorities")
    ours, layered, again = interleave(variants, 1 if quick else 2, report)
    best = ours[0]
    claimed = sum(one.moves.written_pages for one in ours) * best.moves.page_bytes
    waste = 100 * (sum(one.held for one in ours) / sum(one.needed for one in ours) - 1)
    return [
        Claim("mean_run", "mean run of pages in the fullest steps", ">=", 8 if quick else 16, best.mean_run, "pages"),
        Claim("waste", "pages held beyond the fewest that hold the tokens", "<=", 1.0, waste, "%"),
        Claim("stall", "time that only waits for pages, by runs beside steps", "<=", 10.0, 100 * _stall(best), "%", _note(best)),
        Claim("stall_layers", "the same, layer by layer in line", ">=", 40.0, 100 * _stall(layered[0]), "%", _note(layered[0])),
        *([] if quick else [_gap("gap", "", layered, ours)]),
        _gap("running_gap", " of streams that are not set aside", layered, ours),
        Claim("throughput", "tokens/s, by runs / computing again", ">=", 1.3, _rate(ours, again), "x",
              f"{again[0].recomputed} tokens computed again in {again[0].preemptions} preemptions"),
        Claim("first", "P99 of the time to the first token, computing again / by runs", ">=", 1.5, _first(again, ours), "x"),
        Claim("disk", "bytes written by the kernel's count / bytes claimed", ">=", 0.99,
              sum(one.disk_bytes for one in ours) / max(1, claimed), "", f"{claimed / 2**20:.0f} MiB claimed"),
        _allocator(load, best),
    ]  # fmt: skip


def _gap(name: str, whose: str, layered: Sequence[Run], ours: Sequence[Run]) -> Claim:
    """Quick runs have too few tokens for the rarest gaps of all, which are requests that wait for their turn."""
    tails = [[_tail(one.running_gaps() if whose else one.gaps()) for one in side] for side in (layered, ours)]
    note = f"{1e3 * tails[0][0]:.0f} and {1e3 * tails[1][0]:.0f} ms"
    what = f"P99.9 of the time between tokens{whose}, layer by layer in line / by runs"
    return Claim(name, what, ">=", 3.0, _ratio(*tails), "x", note)


def _pieces(load: _Load) -> list[Claim]:
    """A request leaves and returns: by runs, page by page, and with each layer's keys and values by themselves."""
    bench = load.bench
    run_pages = max(1, PIECE_BYTES // slot_bytes(bench.built.arena.page_bytes))
    kinds = ((run_pages, 1), (1, 2 * bench.built.model.config.layers), (1, 1))
    by_runs, layered, paged = page_seconds(bench, kinds, 5 if load.conditions.quick else 15)
    note = f"{1e3 * layered:.2f}, {1e3 * paged:.2f} and {1e3 * by_runs:.2f} ms a page by layers, pages and runs of {run_pages}"
    what = "time to carry a request, {} by themselves / by runs"
    return [
        Claim("runs", what.format("each layer's keys and values"), ">=", 3.0, layered / by_runs, "x", note),
        Claim("runs_pages", what.format("pages of all layers"), ">=", 1.0, paged / by_runs, "x"),
    ]


def _allocator(load: _Load, one: Run) -> Claim:
    """What it takes to hand out and take back as many pages as the run did, in runs, on a pool that is nearly full."""
    pool = PagePool(int(load.needed / 3), load.bench.built.chain.page_layout.tokens)
    held: list[list[int]] = []
    taken, rng = 0, random.Random(load.conditions.seed)
    began = time.perf_counter()
    while taken < one.taken:
        pages = pool.allocate(min(rng.randint(1, 8), max(1, pool.available)), held[-1][-1] if held else None, 16)
        assert pages is not None, "a page is free"
        held.append(pages)
        taken += len(pages)
        while pool.available < pool.total // 20 + 1:
            pool.release(held.pop(rng.randrange(len(held))))
    share = 100 * (time.perf_counter() - began) / one.seconds
    return Claim("allocator", "handing out the run's pages, of its time", "<=", 1.0, share, "%", f"{one.taken} pages")


def _reuse(load: _Load) -> list[Claim]:
    """Every conversation leaves 5 times as long as it is answered, with and without what the disk holds already."""
    every = max(1, load.talks[0].answer // 5)
    variants = [partial(load.run, runs.preempt_all, SwapVariant(reuse=reuse), every, 0.5) for reuse in (True, False)]
    on, off = (found[0] for found in interleave(variants, 1, partial(load.conditions.report, "clean copies")))
    paid = [one.moves.written_pages / max(1, one.preemptions) for one in (on, off)]
    less = 100 * (1 - paid[0] / paid[1]) if paid[1] else math.nan
    note = f"{on.moves.written_pages} and {off.moves.written_pages} pages in {on.preemptions} and {off.preemptions} preemptions"
    return [Claim("reuse", "fewer bytes written a preemption when the disk's copies count", ">=", 50.0, less, "%", note)]


def _rescue(load: _Load) -> list[Claim]:
    """Enough pages for all: whoever is sent away is wanted again at once."""
    found = load.run(runs.preempt_some, _RUNS, 3, share=1.5)
    note = f"of {found.preemptions} sent away"
    what = "requests sent away that came back without any copy, pages being plenty"
    return [Claim("rescue", what, ">=", 1.0, found.moves.rescues, "requests", note)]


def _fair(load: _Load) -> list[Claim]:
    """Virtual token counters, a share for each conversation, and Markov priorities: what is cheaper against computing again."""
    quick = load.conditions.quick
    swaps = (_AUTO, None)
    often = load.every // 4  # one in ten changes each time, so that too seldom is never
    variants = [partial(load.run, markov_priorities, swap, often) for swap in swaps]
    if not quick:  # in quick runs too little is served for the counters to differ
        variants += [partial(load.run, None, swap, policy="fair") for swap in swaps]
    found = interleave(variants, 1 if quick else 2, partial(load.conditions.report, "fair shares"))
    claims = []
    for name, what, ours, again in zip(
        ("markov", "fair"), ("Markov priorities", "virtual token counters"), found[0::2], found[1::2], strict=False
    ):
        claims.append(
            Claim(
                f"{name}_throughput",
                f"{what}: tokens/s, auto / computing again",
                ">=",
                1.3,
                _rate(ours, again),
                "x",
                _note(ours[0]),
            )
        )
        if not quick:
            first = f"{what}: P99 of the time to the first token, computing again / auto"
            note = f"{again[0].recomputed} tokens computed again"
            claims.append(Claim(f"{name}_first", first, ">=", 1.5, _first(again, ours), "x", note))
    return claims


def _idle(load: _Load) -> list[Claim]:
    """What swapping costs when nothing is ever preempted: the same steps, each at its quickest."""
    variants = [partial(load.run, None, swap, share=1.5) for swap in (_RUNS, None)]
    on, off = interleave(variants, 16, partial(load.conditions.report, "nothing to preempt"))
    seconds = [sum(map(min, zip(*(one.step_seconds for one in side), strict=True))) for side in (on, off)]
    assert not any(one.preemptions for one in (*on, *off)), "the pool holds all"
    lost = 100 * (1 - seconds[1] / seconds[0])
    return [Claim("idle", "tokens/s lost when nothing is preempted", "<=", 1.0, lost, "%", "each step at its quickest")]


def _beside(bench: Bench, load: _Load) -> Claim:
    load.conditions.report("moves beside steps", 0, 1)
    found = steps_beside(bench, 24 if load.conditions.quick else 60, load.conditions.seed)
    note = f"{found.pages:.1f} pages moved a step"
    return Claim("beside", "median step of running streams, longer with moves beside it", "<=", 3.0, found.longer, "%", note)


def _rate(ours: Sequence[Run], again: Sequence[Run]) -> float:
    return median_ratio([one.tokens_a_second for one in ours], [one.tokens_a_second for one in again])


def _first(again: Sequence[Run], ours: Sequence[Run]) -> float:
    return _ratio([_tail(one.first_tokens(), 0.99) for one in again], [_tail(one.first_tokens(), 0.99) for one in ours])


def _stall(one: Run) -> float:
    return one.moves.wait_seconds / one.seconds


def _tail(ordered: Sequence[float], share: float = 0.999) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(above) / statistics.median(below)


def _note(one: Run) -> str:
    moved = (one.moves.written_pages + one.moves.read_pages) * one.moves.page_bytes / 2**20
    return f"{one.preemptions} preemptions, {moved:.0f} MiB moved, {one.moves.reused_pages} pages not written again"


EXPERIMENT = Experiment(
    name="fastswitch",
    title="Preempted requests leave for the disk and come back: by runs, beside the steps, never written twice.",
    source="FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model Serving",
    minutes=6,
    run=run,
)
