"""S-LoRA: thousands of adapters on one base, served unmerged from the pages of keys and values."""

from __future__ import annotations

import tempfile
from pathlib import Path

from headrace.evaluation.experiment import Conditions, Experiment, Findings
from headrace.evaluation.experiments._s_lora_exact import bit_claims, merged_claims
from headrace.evaluation.experiments._s_lora_peft import peft_claims
from headrace.evaluation.experiments._s_lora_policy import policy_claims
from headrace.evaluation.experiments._s_lora_speed import cold_claims, scale_claims, stream_claims
from headrace.evaluation.trained_adapters import RECIPES, trained_adapters
from headrace.evaluation.trials import Bench
from headrace.models.catalog import find_model, open_model
from headrace.models.packages import cache_dir


def run(conditions: Conditions) -> Findings:
    """All measurements; the random adapters lie in a folder of their own, which goes at the end."""
    opened = open_model(find_model(conditions.model))
    trained = trained_adapters(opened, 2 if conditions.quick else len(RECIPES), conditions.report)
    claims = merged_claims(conditions, opened, trained)
    cache_dir().mkdir(parents=True, exist_ok=True)
    with Bench(conditions) as bench, tempfile.TemporaryDirectory(prefix="experiment-", dir=cache_dir()) as name:
        folder = Path(name)
        claims += bit_claims(bench, conditions, trained, folder)
        claims += stream_claims(bench, conditions, folder)
        claims += scale_claims(bench, conditions, folder)
        claims += cold_claims(bench, conditions, folder)
        claims += policy_claims(bench, conditions, folder)
        claims += peft_claims(bench, conditions, folder)
    return Findings(tuple(claims))


EXPERIMENT = Experiment(
    name="s_lora",
    title="Thousands of adapters on one base: near the base's speed, near merged weights, the same bits in any company.",
    source="S-LoRA: Serving Thousands of Concurrent LoRA Adapters",
    minutes=6,
    run=run,
)
