"""Splitting prompts changes no token, and neither does a pool that is too small."""

from __future__ import annotations

import random
from dataclasses import dataclass

from headrace.engine.loop import Engine
from headrace.engine.wire import Submit
from headrace.evaluation.exactness import BUDGETS, UNLIMITED, budget_label, budgeted, greedy_requests, shuffled
from headrace.evaluation.experiment import Claim
from headrace.evaluation.experiments._fastgen_setup import SPREAD, Sides
from headrace.evaluation.trials import Key, Trace, Traces, run_all
from headrace.evaluation.workload import Lengths
from headrace.scheduling.settings import SchedulingSettings

_SHARE_OF_PAGES = 0.4
_REQUESTS = 32
_STUCK = 100  # steps without progress after which a run is given up


def exact(sides: Sides) -> list[Claim]:
    """Greedy tokens and logprobs of mixed requests under every budget, compared with each request alone."""
    quick, seed = sides.conditions.quick, sides.conditions.seed
    rng = random.Random(seed)
    edges = [length for budget in BUDGETS[:2] if budget != UNLIMITED for length in (budget, budget + 1, 2 * budget, 2 * budget + 1)]
    if not quick:
        edges += [length for budget in BUDGETS[2:-1] for length in (budget, budget + 1, 2 * budget, 2 * budget + 1)]
    lengths = [*edges, *(rng.randrange(1, 60 if quick else 160) for _ in range(4 if quick else 20))]
    submits = greedy_requests(sides.bench, lengths, (2, 5, 9, 14), seed)
    alone: dict[Key, Trace] = {}
    for number, submit in enumerate(submits):
        sides.conditions.report("each request alone", number, len(submits))
        alone |= run_all(budgeted(sides.bench, UNLIMITED), [submit])
    claims = []
    for number, budget in enumerate(BUDGETS):
        sides.conditions.report("all together", number, len(BUDGETS) + 1)
        what = f"tokens and logprobs with step budget {budget_label(budget)} as alone"
        claims.append(_same(f"exact_{budget_label(budget)}", what, run_all(budgeted(sides.bench, budget), submits), alone))
    what = "tokens and logprobs with requests coming in random order as alone"
    return [*claims, _same("exact_arrival", what, shuffled(sides.bench, submits, seed + 1), alone)]


def _same(claim_id: str, what: str, traces: Traces, alone: Traces) -> Claim:
    same = sum(traces.get(key) == trace for key, trace in alone.items())
    return Claim(claim_id, what, "==", 100.0, 100 * same / len(alone), "% same bits", f"{len(alone)} requests")


@dataclass(frozen=True, slots=True)
class _Starved:
    """A run on a small pool. ``idle``: steps that computed nothing though requests were live."""

    traces: Traces
    idle: int
    recomputed: float
    preemptions: int


def starvation(sides: Sides) -> list[Claim]:
    """32 requests at once on a pool that holds 40 % of their positions."""
    sides.conditions.report("too few pages", 0, 2)
    rng = random.Random(sides.conditions.seed + 2)
    prompts, outputs = (24, 16) if sides.conditions.quick else (128, 64)
    lengths = [Lengths("normal", prompts, SPREAD).draw(rng) for _ in range(_REQUESTS)]
    wanted = [max(2, Lengths("normal", outputs, SPREAD).draw(rng)) for _ in range(_REQUESTS)]
    submits = greedy_requests(sides.bench, lengths, wanted, sides.conditions.seed + 3)
    page = sides.bench.built.chain.page_layout.tokens
    pages = sum(-(-(len(one.prompt) + one.params.max_tokens - 1) // page) for one in submits)
    plenty = run_all(sides.bench.engine(SchedulingSettings(gap_target_ms=60_000, prefix_reuse="off")), submits)
    sides.conditions.report("too few pages", 1, 2)
    small = _run_starved(sides.bench.engine(pages=int(_SHARE_OF_PAGES * pages)), submits)
    finished = sum(trace.finish is not None for trace in small.traces.values())
    note = f"pool of {int(_SHARE_OF_PAGES * pages)} pages for {pages}, {small.preemptions} preemptions"
    same = sum(small.traces.get(key) == trace for key, trace in plenty.items())
    return [
        Claim("starvation_finished", "requests that finish on a pool of 40 % of their pages", "==", _REQUESTS, finished, "", note),
        Claim("starvation_exact", "their tokens and logprobs as with enough pages", "==", 100, 100 * same / len(plenty), "% same"),
        Claim("starvation_recomputed", "rows computed again", "<=", 10, 100 * small.recomputed, "% of rows"),
        Claim("starvation_idle", "steps that computed nothing", "==", 0, small.idle, "steps"),
    ]


def _run_starved(engine: Engine, submits: tuple[Submit, ...]) -> _Starved:
    traces: dict[Key, Trace] = {}
    counters, idle = engine.scheduler.counters, 0
    for submit in submits:
        engine.submit(submit)
    while engine.live and idle < _STUCK:
        before = counters.computed
        outputs = engine.step()
        idle += counters.computed == before
        for output in outputs.outputs if outputs is not None else ():
            traces.setdefault((output.request_id, output.choice), Trace()).take(output)
    return _Starved(traces, idle, counters.recomputed / max(1, counters.computed), counters.preemptions)
