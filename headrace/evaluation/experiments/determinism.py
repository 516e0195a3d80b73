"""Determinism: a request's tokens and logprobs don't depend on what else the engine does, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from headrace.evaluation.exactness import (
    BUDGETS,
    ExactLoad,
    budget_label,
    budgeted,
    mixed_requests,
    on_scarce_pages,
    on_threads,
    shuffled,
)
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings
from headrace.evaluation.trials import Bench, Trace, run_all
from headrace.scheduling.settings import SchedulingSettings


def run(conditions: Conditions) -> Findings:
    """Run the same requests alone and in every other way, and count what differs."""
    count, longest = (14, 90) if conditions.quick else (64, 400)
    with Bench(conditions) as bench:
        submits = mixed_requests(bench, count, longest, conditions.seed)
        alone: dict[tuple[int, int], Trace] = {}
        for number, submit in enumerate(submits):
            conditions.report("each request alone", number, count)
            alone |= run_all(bench.engine(), [submit])
        load = ExactLoad(submits, alone)
        ways = _ways(bench, load, conditions.seed)
        claims = []
        for number, (claim_id, (what, way)) in enumerate(ways.items()):
            conditions.report(what, number, len(ways))
            claims.append(Claim(claim_id, what, "==", 100.0, way(), "% same bits", f"{len(alone)} choices"))
        share, preemptions, _ = on_scarce_pages(bench, load)
        claims.append(Claim("preempt", "pool too small: preempted and recomputed", "==", 100.0, share, "% same bits"))
        claims.append(Claim("preemptions", "preemptions in that run", ">=", 1, preemptions, "preemptions"))
    return Findings(tuple(claims))


def _ways(bench: Bench, load: ExactLoad, seed: int) -> Mapping[str, tuple[str, Callable[[], float]]]:
    """Everything that must make no difference, by claim id."""
    ways: dict[str, tuple[str, Callable[[], float]]] = {}
    for budget in BUDGETS:
        ways[f"budget_{budget_label(budget)}"] = (
            f"all together, step budget {budget_label(budget)}",
            partial(_with_budget, bench, load, budget),
        )
    ways["arrival"] = ("random arrival order and times", lambda: load.same(shuffled(bench, load.submits, seed + 1)))
    for threads in (1, 2):
        ways[f"threads_{threads}"] = (
            f"all together, {threads} thread{'s' * (threads > 1)}",
            partial(on_threads, bench, load, threads),
        )
    ways["forks"] = ("choices without forks: each prompt computed again", lambda: _without_forks(bench, load))
    ways["whole"] = ("prompts whole and first", lambda: _whole_prompts(bench, load))
    return ways


def _with_budget(bench: Bench, load: ExactLoad, tokens: int) -> float:
    return load.same(run_all(budgeted(bench, tokens), load.submits))


def _without_forks(bench: Bench, load: ExactLoad) -> float:
    """Choice 0 of a request with n choices is the same request with one: no fork, no shared page."""
    single = [
        msgspec.structs.replace(one, params=msgspec.structs.replace(one.params, n=1)) for one in load.submits if one.params.n > 1
    ]
    return load.same(run_all(budgeted(bench, 128), single))


def _whole_prompts(bench: Bench, load: ExactLoad) -> float:
    return load.same(run_all(bench.engine(SchedulingSettings(policy="prompts_whole_first")), load.submits))


EXPERIMENT = Experiment(
    name="determinism",
    title="A request's tokens and logprobs are the same bits alone and in any company.",
    source="the engine's own law: integer products, and float sums whose order depends on the row alone",
    minutes=4,
    run=run,
)
