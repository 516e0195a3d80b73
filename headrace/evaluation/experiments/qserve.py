"""QServe: weights, rows, keys and values in few bits, exact under any schedule, and what that buys and costs."""

from __future__ import annotations

from headrace.evaluation.experiment import Conditions, Experiment, Findings
from headrace.evaluation.experiments._qserve_exact import integer_products, protective_range, same_requests
from headrace.evaluation.experiments._qserve_quality import SUBJECTS, quality
from headrace.evaluation.experiments._qserve_rows import grouped_rows
from headrace.evaluation.experiments._qserve_speed import attention, resident
from headrace.evaluation.experiments._qserve_weights import blocks_of_rows, one_stream
from headrace.models.catalog import find_model, open_model


def run(conditions: Conditions) -> Findings:
    """Exactness first, then speed with and without in turns, then quality."""
    exact = integer_products(conditions)
    for kv in ("kv4",) if conditions.quick else ("kv4", "kv8"):
        exact += same_requests(conditions, kv)
    exact += protective_range(conditions)
    opened = open_model(find_model(conditions.model))
    faster = one_stream(conditions, opened)
    products, series = blocks_of_rows(conditions, opened)
    faster += [*products, *grouped_rows(conditions, opened), *attention(conditions, opened), *resident(conditions)]
    costs = [claim for subject in SUBJECTS for claim in quality(conditions, subject)]
    return Findings((*exact, *faster, *costs), tuple(series))


EXPERIMENT = Experiment(
    name="qserve",
    title="Few bits for weights, rows, keys and values: the same bits under any schedule, less memory, more speed.",
    source="QServe: W4A8KV4 Quantization and System Co-design for Efficient LLM Serving",
    minutes=6,
    run=run,
)
