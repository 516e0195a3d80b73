"""FlexLLM: fine-tuning in windows inside the steps of a serving engine, exact on both sides."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.evaluation.experiment import Conditions, Experiment, Findings
from headrace.evaluation.experiments._flexllm_load import Sweep
from headrace.evaluation.experiments._flexllm_serving import Beside, beside
from headrace.evaluation.trials import Bench
from headrace.training.backbone import Backbone


def run(conditions: Conditions) -> Findings:
    """Gradients first: everything else is worth nothing without them."""
    try:
        from headrace.evaluation.experiments import _flexllm_gradients as gradients
        from headrace.evaluation.experiments._flexllm_fusion import fusion
    except ImportError as error:
        message = "the gradients are compared with torch's: pip install 'headrace[torch]'"
        raise HeadraceError("invalid_setting", message, param="name") from error
    with Bench(conditions) as bench:
        model = bench.built.model
        backbone = Backbone(model.config, model.weights)
        ids = bench.prompt(1024, random.Random(conditions.seed))
        claims = [
            *gradients.gradients(conditions, model, backbone, ids),
            *gradients.losses(conditions, backbone, ids),
            *gradients.memory(conditions, model, ids),
            fusion(conditions, backbone, ids),
        ]
        with tempfile.TemporaryDirectory(prefix="headrace-training-") as folder:
            load = Beside(bench, backbone, Path(folder), conditions.seed)
            claims += [*beside(conditions, load), *Sweep(conditions, load).claims()]
    return Findings(tuple(claims))


EXPERIMENT = Experiment(
    name="flexllm",
    title="Fine-tuning inside the steps of serving: exact gradients in windows, and no request notices.",
    source="Token-Level Co-Serving of LLM Inference and Parameter-Efficient Finetuning (FlexLLM)",
    minutes=6,
    run=run,
)
