"""Metrics counted by model once, and shown twice: as a sum under our own name, and by model under the name that boards know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)
_GAPS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

FINISH_REASONS = ("stop", "length", "cancelled", "deadline", "error")
_ALIAS_LABELS = {"model": "model_name", "reason": "finished_reason"}


class PerModel(Collector):
    """One counter or histogram with the label ``model``; collected as its sum over models, and under each of its ``aliases``.

    Aliases have the labels of the engine whose names they are: ``model_name`` and ``engine``.
    """

    def __init__(self, metric: Counter | Histogram, name: str, aliases: tuple[str, ...]) -> None:
        self.metric = metric
        self._name = name
        self._aliases = aliases

    def collect(self) -> Iterator[Metric]:
        """Our own family, then the aliases."""
        [family] = self.metric.collect()
        sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for suffix, labels, value in self._samples(family):
            place = suffix, tuple((name, text) for name, text in labels.items() if name != "model")
            sums[place] = sums.get(place, 0.0) + value
        own = Metric(self._name, family.documentation, family.type)
        for (suffix, known), value in sums.items():
            own.add_sample(self._name + suffix, dict(known), value)
        yield own
        for alias in self._aliases:
            other = Metric(alias, f"{self._name} by model.", family.type)
            for suffix, labels, value in self._samples(family):
                renamed = {_ALIAS_LABELS.get(name, name): text for name, text in labels.items()}
                other.add_sample(alias + suffix, {**renamed, "engine": "0"}, value)
            yield other

    def _samples(self, family: Metric) -> Iterator[tuple[str, dict[str, str], float]]:
        for sample in family.samples:
            suffix = sample.name.removeprefix(self._name)
            if suffix != "_created":
                yield suffix, sample.labels, sample.value


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """What one model's requests are counted in."""

    prompt_tokens: Counter
    cached_tokens: Counter
    generated_tokens: Counter
    first_token: Histogram
    gap: Histogram
    whole: Histogram
    queue: Histogram
    prefill: Histogram
    decode: Histogram
    inference: Histogram
    request_prompt: Histogram
    request_generated: Histogram
    reasons: dict[str, Counter]

    def finished(self, reason: str) -> Counter:
        """Choices that ended for this reason."""
        return self.reasons[reason]


_COUNTERS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "prompt_tokens", "headrace_prompt_tokens", "Prompt tokens of answered requests.",
        ("vllm:prompt_tokens", "vllm:prefix_cache_queries"),
    ),
    ("cached_tokens", "headrace_cached_prompt_tokens", "Prompt tokens found in pages.", ("vllm:prefix_cache_hits",)),
    ("generated_tokens", "headrace_generated_tokens", "Tokens delivered.", ("vllm:generation_tokens",)),
)  # fmt: skip
_HISTOGRAMS: tuple[tuple[str, str, str, tuple[float, ...], tuple[str, ...]], ...] = (
    (
        "first_token", "headrace_time_to_first_token_seconds", "From arrival to the first token.", _SECONDS,
        ("vllm:time_to_first_token_seconds",),
    ),
    (
        "gap", "headrace_inter_token_seconds", "Between two tokens of a choice.", _GAPS,
        ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    ),
    ("whole", "headrace_request_seconds", "From arrival to the last token.", _SECONDS, ("vllm:e2e_request_latency_seconds",)),
    ("queue", "headrace_queue_seconds", "From arrival to the first step.", _SECONDS, ("vllm:request_queue_time_seconds",)),
    (
        "prefill", "headrace_prefill_seconds", "From the first step to the first token.", _SECONDS,
        ("vllm:request_prefill_time_seconds",),
    ),
    (
        "decode", "headrace_decode_seconds", "From the first token to the last.", _SECONDS,
        ("vllm:request_decode_time_seconds",),
    ),
    (
        "inference", "headrace_inference_seconds", "From the first step to the last token.", _SECONDS,
        ("vllm:request_inference_time_seconds",),
    ),
    (
        "request_prompt", "headrace_request_prompt_tokens", "Prompt tokens of a request.", _TOKENS,
        ("vllm:request_prompt_tokens",),
    ),
    (
        "request_generated", "headrace_request_generated_tokens", "Tokens that a request got.", _TOKENS,
        ("vllm:request_generation_tokens",),
    ),
)  # fmt: skip


class ModelMetrics:
    """All metrics that are counted by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counters = {
            field: Counter(name, text, ["model"], registry=None) for field, name, text, _ in _COUNTERS
        }  # fmt: skip
        self._histograms = {
            field: Histogram(name, text, ["model"], buckets=buckets, registry=None) for field, name, text, buckets, _ in _HISTOGRAMS
        }
        self._finished = Counter("headrace_choices_finished", "Finished choices by reason.", ["model", "reason"], registry=None)
        for field, name, _, aliases in _COUNTERS:
            registry.register(PerModel(self._counters[field], name, aliases))
        for field, name, _, _, aliases in _HISTOGRAMS:
            registry.register(PerModel(self._histograms[field], name, aliases))
        registry.register(PerModel(self._finished, "headrace_choices_finished", ("vllm:request_success",)))
        self._known: dict[str, ModelCounts] = {}

    def of(self, model: str) -> ModelCounts:
        """The counters of one model."""
        known = self._known.get(model)
        if known is None:
            counters = {field: one.labels(model) for field, one in self._counters.items()}
            histograms = {field: one.labels(model) for field, one in self._histograms.items()}
            reasons = {reason: self._finished.labels(model, reason) for reason in FINISH_REASONS}
            known = self._known[model] = ModelCounts(**counters, **histograms, reasons=reasons)  # type: ignore[arg-type]
        return known
