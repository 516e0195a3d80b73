"""SmartSpec: as many drafted tokens as raise the goodput, in one stream and in batches, and the same bits whatever is drafted."""

from __future__ import annotations

from headrace.evaluation.experiment import Conditions, Experiment, Findings
from headrace.evaluation.experiments._smartspec_distribution import distribution
from headrace.evaluation.experiments._smartspec_drafts import drafts
from headrace.evaluation.experiments._smartspec_runs import beyond, cost, exact, foreseen, grid, single, swing
from headrace.evaluation.trials import Bench


def run(conditions: Conditions) -> Findings:
    """All measurements on one loaded model."""
    with Bench(conditions) as bench:
        claims = exact(bench, conditions) + distribution(bench, conditions) + single(bench, conditions)
        cells, series = grid(bench, conditions)
        claims += cells + foreseen(bench, conditions) + swing(bench, conditions)
        claims += cost(bench, conditions) + beyond(bench, conditions)
    claims += drafts(conditions)
    return Findings(tuple(claims), tuple(series))


EXPERIMENT = Experiment(
    name="smartspec",
    title="Several tokens a step where they can be guessed, none where that costs: the same tokens, sampled ones too.",
    source="Optimizing Speculative Decoding for Serving LLMs Using Goodput (SmartSpec)",
    minutes=6,
    run=run,
)
