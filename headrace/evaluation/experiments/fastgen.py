"""FastGen: prompts in pieces beside running streams (Dynamic SplitFuse), against whole prompts that run first."""

from __future__ import annotations

from headrace.evaluation.experiment import Conditions, Experiment, Findings
from headrace.evaluation.experiments._fastgen_exact import exact, starvation
from headrace.evaluation.experiments._fastgen_rates import knees, no_loss, promised
from headrace.evaluation.experiments._fastgen_setup import open_sides
from headrace.evaluation.experiments._fastgen_stall import stall
from headrace.evaluation.experiments._fastgen_steps import foreseen, overhead
from headrace.evaluation.trials import Bench


def run(conditions: Conditions) -> Findings:
    """All measurements on one loaded model, and the choice of the step size on a second one."""
    conditions.report("calibrating", 0, 1)
    with Bench(conditions) as bench:
        sides = open_sides(bench, conditions)
        stalls, stall_series = stall(sides)
        promises, promise_series = promised(sides)
        rates = no_loss(sides)
        costs = [*overhead(sides), *foreseen(sides)]
        same, starved = exact(sides), starvation(sides)
        sizes, size_series = knees(sides)
    claims = (*same, *stalls, *promises, *rates, *sizes, *starved, *costs)
    return Findings(claims, (*stall_series, *promise_series, *size_series))


EXPERIMENT = Experiment(
    name="fastgen",
    title="Prompts in pieces beside running streams: no stalls, no token changed.",
    source="DeepSpeed-FastGen: High-throughput Text Generation for LLMs via MII and DeepSpeed-Inference (Dynamic SplitFuse)",
    minutes=6,
    run=run,
)
