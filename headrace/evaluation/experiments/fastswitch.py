"""FastSwitch: preempted requests leave for the disk by runs, asynchronously, and come back; against page by page, in line."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from headrace.engine.wire import Submit
from headrace.evaluation.exactness import greedy_requests
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, interleave
from headrace.evaluation.experiments import _fastswitch_runs as runs
from headrace.evaluation.experiments._fastswitch_runs import Run
from headrace.evaluation.statistics import median_ratio
from headrace.evaluation.trials import Bench, SwapVariant
from headrace.scheduling.priority_changes import PriorityChange, least_served_first, markov_priorities, random_priorities
from headrace.scheduling.settings import SchedulingSettings

_RUNS = SwapVariant()
_PAGE_BY_PAGE = SwapVariant(run_pages=1, reuse=False, synchronous=True)
_EVERY, _QUICK_EVERY = 25, 16  # steps between changes of priority


@dataclass(frozen=True, slots=True)
class _Load:
    """Conversations that need three times the pool."""

    bench: Bench
    conditions: Conditions
    submits: tuple[Submit, ...]
    needed: int

    def run(self, pattern: PriorityChange | None, swap: SwapVariant | None, every: int = _EVERY, share: float = 1 / 3) -> Run:
        """One run on a pool that holds ``share`` of what the conversations need."""
        settings = SchedulingSettings(policy="priority")
        engine = self.bench.engine(settings, int(self.needed * share), swap)
        return runs.run(engine, self.submits, pattern, every, self.conditions.seed)


def run(conditions: Conditions) -> Findings:
    """All measurements on one loaded model."""
    with Bench(conditions) as bench:
        load = _conversations(bench, conditions, *((6, 128, 20) if conditions.quick else (12, 256, 64)))
        exact, undisturbed = _exact(bench, conditions)
        claims = [*exact, *_switches(load), *_reuse(load), *_rescue(load), *_fair(load), *_idle(load)]
    assert undisturbed.preemptions == 0
    return Findings(tuple(claims))


def _conversations(bench: Bench, conditions: Conditions, count: int, prompt: int, output: int) -> _Load:
    rng = random.Random(conditions.seed)
    lengths = [rng.randrange(prompt // 2, prompt * 3 // 2) for _ in range(count)]
    submits = greedy_requests(bench, lengths, (output,), conditions.seed)
    page = bench.built.chain.page_layout.tokens
    return _Load(bench, conditions, submits, sum(-(-(length + output) // page) for length in lengths))


def _exact(bench: Bench, conditions: Conditions) -> tuple[list[Claim], Run]:
    """A third of the running requests is sent away every k steps, on a third of the pages."""
    small = _conversations(bench, conditions, *((5, 40, 8) if conditions.quick else (16, 160, 48)))
    undisturbed = small.run(None, None, share=2.0)
    claims = []
    for every in (1, 7, 25):
        conditions.report("exactness", every, 25)
        disturbed = small.run(runs.preempt_and_reorder, _RUNS, every)
        same = sum(disturbed.traces.get(key) == trace for key, trace in undisturbed.traces.items())
        what = f"tokens and logprobs with requests sent to disk every {every} steps, as undisturbed"
        note = (
            f"{disturbed.preemptions} preemptions, {disturbed.moves.written_pages} pages written, {disturbed.moves.rescues} rescues"
        )
        claims.append(Claim(f"exact_{every}", what, "==", 100, 100 * same / len(undisturbed.traces), "% same bits", note))
    return claims, undisturbed


def _switches(load: _Load) -> list[Claim]:
    """Random priorities every 25 steps on a third of the pages: runs beside steps, pages in line, and computing again."""
    quick = load.conditions.quick
    variants = [
        partial(load.run, random_priorities, swap, _QUICK_EVERY if quick else _EVERY) for swap in (_RUNS, _PAGE_BY_PAGE, None)
    ]
    report = partial(load.conditions.report, "changing priorities")
    ours, paged, again = interleave(variants, 1 if quick else 2, report)
    best = ours[0]
    page_bytes = best.moves.page_bytes
    claimed = sum(one.moves.written_pages for one in ours) * page_bytes
    note = _note(best)
    return [
        Claim(
            "runs", "time to carry a page, page by page / by runs", ">=", 3.0,
            statistics.median(map(_carry, paged)) / statistics.median(map(_carry, ours)), "x",
            f"{1e3 * _carry(best):.2f} and {1e3 * _carry(paged[0]):.2f} ms; {_pieces(best):.1f} pages a piece",
        ),
        Claim("mean_run", "mean run of pages in the fullest steps", ">=", 10 if quick else 16, best.mean_run, "pages", ""),
        Claim("stall", "time that only waits for pages, by runs beside steps", "<=", 10.0, 100 * _stall(best), "% of wall", note),
        Claim("stall_paged", "the same, page by page in line", ">=", 40.0, 100 * _stall(paged[0]), "% of wall", _note(paged[0])),
        Claim("gap", "P99.9 of the time between tokens, page by page in line / by runs", ">=", 3.0,
              _ratio([_tail(one.gaps()) for one in paged], [_tail(one.gaps()) for one in ours]), "x", ""),
        Claim("throughput", "tokens/s, by runs / computing again", ">=", 1.3,
              median_ratio([one.tokens_a_second for one in ours], [one.tokens_a_second for one in again]), "x",
              f"{again[0].recomputed} tokens computed again in {again[0].preemptions} preemptions"),
        Claim("disk", "bytes written by the kernel's count / bytes claimed", ">=", 0.99,
              sum(one.disk_bytes for one in ours) / max(1, claimed), "", f"{claimed / 2**20:.0f} MiB claimed"),
    ]  # fmt: skip


def _reuse(load: _Load) -> list[Claim]:
    """Every conversation leaves after each of 5 turns, with and without what the disk holds already."""
    turn = load.submits[0].params.max_tokens // 5
    variants = [partial(load.run, runs.preempt_all, SwapVariant(reuse=reuse), turn, 0.5) for reuse in (True, False)]
    on, off = (found[0] for found in interleave(variants, 1, partial(load.conditions.report, "clean copies")))
    paid = [one.moves.written_pages / max(1, one.preemptions) for one in (on, off)]
    less = 100 * (1 - paid[0] / paid[1]) if paid[1] else math.nan
    note = f"{on.moves.written_pages} and {off.moves.written_pages} pages in {on.preemptions} and {off.preemptions} preemptions"
    return [
        Claim("reuse", "fewer bytes written a preemption, in 5 turns, when the disk's copies count", ">=", 50.0, less, "%", note)
    ]


def _rescue(load: _Load) -> list[Claim]:
    """Enough pages for all: whoever is sent away is wanted again at once."""
    found = load.run(runs.preempt_some, _RUNS, 3, share=1.5)
    note = f"of {found.preemptions} sent away"
    what = "requests sent away that came back without any copy, pages being plenty"
    return [Claim("rescue", what, ">=", 1.0, found.moves.rescues, "requests", note)]


def _fair(load: _Load) -> list[Claim]:
    """Online priorities: who was served least goes first; leaving with the pages against computing again."""
    every = _QUICK_EVERY if load.conditions.quick else _EVERY
    variants = [partial(load.run, least_served_first, swap, every) for swap in (SwapVariant("auto"), None)]
    if not load.conditions.quick:
        variants += [partial(load.run, markov_priorities, swap, every) for swap in (SwapVariant("auto"), None)]
    found = interleave(variants, 1 if load.conditions.quick else 2, partial(load.conditions.report, "fair shares"))
    claims = []
    for name, what, ours, again in zip(
        ("fair", "markov"), ("virtual token counters", "Markov priorities"), found[0::2], found[1::2], strict=False
    ):
        rate = median_ratio([one.tokens_a_second for one in ours], [one.tokens_a_second for one in again])
        first = _ratio([one.first_tokens()[-1] for one in again], [one.first_tokens()[-1] for one in ours])
        claims += [
            Claim(f"{name}_throughput", f"{what}: tokens/s, auto / computing again", ">=", 1.3, rate, "x", _note(ours[0])),
            Claim(f"{name}_first", f"{what}: worst time to the first token, computing again / auto", ">=", 1.5, first, "x", ""),
        ]
    return claims


def _idle(load: _Load) -> list[Claim]:
    """What swapping costs when nothing is ever preempted."""
    variants = [partial(load.run, None, swap, share=1.5) for swap in (_RUNS, None)]
    on, off = interleave(variants, 1 if load.conditions.quick else 5, partial(load.conditions.report, "nothing to preempt"))
    lost = 100 * (1 - max(one.tokens_a_second for one in on) / max(one.tokens_a_second for one in off))
    return [Claim("idle", "tokens/s lost when nothing is preempted", "<=", 1.0, lost, "%", "best of the runs on each side")]


def _carry(one: Run) -> float:
    return one.carried_seconds / max(1, one.moves.written_pages + one.moves.read_pages)


def _pieces(one: Run) -> float:
    return (one.moves.written_pages + one.moves.read_pages) / max(1, one.moves.writes + one.moves.reads)


def _stall(one: Run) -> float:
    return one.moves.wait_seconds / one.seconds


def _tail(ordered: Sequence[float]) -> float:
    return ordered[min(len(ordered) - 1, int(0.999 * len(ordered)))]


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
