"""The engines' gauges under the names that existing boards, gateways and autoscalers read: those of vLLM."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.engine.wire import Gauges, SpeculationGauges
from headrace.server.observing.journal import Journal
from headrace.server.observing.life import Life
from headrace.server.served_model import ServedModel

_LABELS = ["model_name", "engine"]


def _usage(gauges: Gauges) -> float:
    return 1.0 - gauges.pages_free / gauges.pages_total if gauges.pages_total else 0.0


def _drafts(counts: SpeculationGauges | None) -> int:
    if counts is None:
        return 0
    return counts.streams_1 + counts.streams_2 + counts.streams_4 + counts.streams_8 + counts.streams_16 + counts.streams_32


_GAUGES: tuple[tuple[str, str, Callable[[Gauges], float]], ...] = (
    ("vllm:num_requests_running", "headrace_requests_running by model.", lambda gauges: gauges.running),
    ("vllm:num_requests_waiting", "headrace_requests_waiting by model.", lambda gauges: gauges.waiting),
    ("vllm:kv_cache_usage_perc", "Pages that somebody holds, 0 to 1.", _usage),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Gauges], float]], ...] = (
    ("vllm:num_preemptions", "headrace_engine_preemptions by model.", lambda gauges: gauges.preemptions),
    ("vllm:spec_decode_num_drafts", "Drafts that steps verified.", lambda gauges: _drafts(gauges.speculation)),
    (
        "vllm:spec_decode_num_draft_tokens", "headrace_draft_tokens_verified by model.",
        lambda gauges: gauges.speculation.drafted if gauges.speculation is not None else 0,
    ),
    (
        "vllm:spec_decode_num_accepted_tokens", "headrace_draft_tokens_accepted by model.",
        lambda gauges: gauges.speculation.accepted if gauges.speculation is not None else 0,
    ),
)  # fmt: skip


class EngineAliases(Collector):
    """Reads the models when somebody asks."""

    def __init__(self, models: Iterable[ServedModel], journal: Journal) -> None:
        self._models = models
        self._journal = journal

    def collect(self) -> Iterator[Metric]:
        """One family a metric, one line a model."""
        states = [(model, model.gauges()) for model in self._models]
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            for model, gauges in states:
                gauge.add_metric([model.name, "0"], value(gauges))
            yield gauge
        for name, text, value in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            for model, gauges in states:
                counter.add_metric([model.name, "0"], value(gauges))
            yield counter
        yield _cache_config(states)
        yield _lora(states, self._journal.lives())


def _cache_config(states: list[tuple[ServedModel, Gauges]]) -> Metric:
    family = GaugeMetricFamily(
        "vllm:cache_config_info", "How large pages are and how many there are, as labels.",
        labels=[*_LABELS, "block_size", "num_gpu_blocks", "num_cpu_blocks"],
    )  # fmt: skip
    for model, gauges in states:
        tokens = model.loaded.ready.page_tokens if model.loaded is not None else 0
        family.add_metric([model.name, "0", str(tokens), str(gauges.pages_total), "0"], 1.0)
    return family


def _lora(states: list[tuple[ServedModel, Gauges]], lives: Iterable[Life]) -> Metric:
    """Which adapters requests run with, and which they wait with, as gateways read it that send requests where their adapter is."""
    family = GaugeMetricFamily(
        "vllm:lora_requests_info", "When it was read; adapters of requests, joined by commas, as labels.",
        labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
    )  # fmt: skip
    registered = sum(gauges.adapters.registered for _, gauges in states if gauges.adapters is not None)
    running: set[str] = set()
    waiting: set[str] = set()
    for life in lives:
        if life.ended is None and life.name != life.model:
            (waiting if life.first is None else running).add(life.name)
    family.add_metric([str(registered), ",".join(sorted(running)), ",".join(sorted(waiting))], time.time())
    return family
