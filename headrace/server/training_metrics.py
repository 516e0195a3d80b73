"""What fine-tuning holds and has done, as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from headrace.engine.training_wire import TrainingGauges


def training_metrics(counts: TrainingGauges) -> Iterator[Metric]:
    """One family a metric."""
    for name, text, value in (
        ("headrace_training_jobs", "Fine-tuning jobs under way in engines.", counts.jobs),
        ("headrace_training_pages", "Pages of the pool that jobs hold.", counts.pages),
        (
            "headrace_training_backbone_bytes",
            "Weights that jobs train on, as they are served, outside of the pool.",
            counts.backbone_bytes,
        ),
    ):
        yield GaugeMetricFamily(name, text, value=value)
    for name, text, amount in (
        ("headrace_training_units", "Units of training that ran.", counts.units),
        ("headrace_training_units_beside", "Of these, units between steps that streams waited for.", counts.beside),
        ("headrace_training_seconds", "Time inside units.", counts.seconds),
        ("headrace_training_tokens", "Tokens whose gradient was computed.", counts.tokens),
        ("headrace_training_steps", "Steps of optimisers.", counts.steps),
    ):
        yield CounterMetricFamily(name, text, value=amount)
