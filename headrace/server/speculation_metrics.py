"""What drafts brought, as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from headrace.engine.wire import SpeculationGauges


def speculation_metrics(counts: SpeculationGauges) -> Iterator[Metric]:
    """One family a metric."""
    for name, text, amount in (
        ("headrace_draft_tokens_proposed", "Tokens that proposers guessed.", counts.proposed),
        ("headrace_draft_tokens_verified", "Of these, tokens that steps verified.", counts.drafted),
        ("headrace_draft_tokens_accepted", "Of these, tokens that were right: each saved a row of a later step.", counts.accepted),
        ("headrace_draft_tokens_foreseen", "How many of those verified were expected to be right.", counts.foreseen),
        ("headrace_draft_seconds", "Time spent on proposing.", counts.seconds),
    ):
        yield CounterMetricFamily(name, text, value=amount)
    lengths = (
        ("0", counts.streams_0), ("1", counts.streams_1), ("2", counts.streams_2), ("4", counts.streams_4),
        ("8", counts.streams_8), ("16", counts.streams_16), ("32", counts.streams_32),
    )  # fmt: skip
    buckets, below = [], 0
    for bound, count in lengths:
        below += count
        buckets.append((bound, float(below)))
    buckets.append(("+Inf", float(below)))
    text = "Drafted tokens verified for one stream in one step."
    yield HistogramMetricFamily("headrace_draft_length", text, buckets=buckets, sum_value=float(counts.drafted))
