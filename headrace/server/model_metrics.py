"""What each model of a server did and holds, with the label ``model``; the metrics without it are sums over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.server.served_model import STATES, ServedModel

_GAUGES: tuple[tuple[str, str, Callable[[ServedModel], float]], ...] = (
    ("headrace_model_requests", "Requests that the model answers.", lambda model: model.users),
    ("headrace_model_waiting", "Requests that wait until the model is in memory.", lambda model: model.waiting),
    (
        "headrace_model_memory_bytes",
        "What the plan gives the model while it is in memory.",
        lambda model: model.need.total if model.need is not None and model.in_memory else 0,
    ),
    ("headrace_model_pages_total", "Pages in the model's pool.", lambda model: model.gauges().pages_total),
    ("headrace_model_pages_free", "Of these, pages that nobody holds.", lambda model: model.gauges().pages_free),
)
_COUNTERS: tuple[tuple[str, str, Callable[[ServedModel], float]], ...] = (
    ("headrace_model_loads", "Times the model came into memory.", lambda model: model.counts.loads),
    ("headrace_model_load_seconds", "Time that took.", lambda model: model.counts.load_seconds),
    ("headrace_model_unloads", "Times the model left the memory.", lambda model: model.counts.unloads),
    ("headrace_model_crashes", "Times its engine ended by itself.", lambda model: model.counts.crashes),
    ("headrace_model_failures", "Times it could not be loaded.", lambda model: model.counts.failures),
    ("headrace_model_prompt_tokens", "Prompt tokens computed.", lambda model: model.gauges().prompt_tokens),
    ("headrace_model_generated_tokens", "Tokens sampled.", lambda model: model.gauges().generated_tokens),
    ("headrace_model_step_seconds", "Time inside steps.", lambda model: model.gauges().step_seconds),
)


class ModelCollector(Collector):
    """Reads the models when somebody asks."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """One family a metric, one line a model."""
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            for model in self._models:
                gauge.add_metric([model.name], value(model))
            yield gauge
        for name, text, value in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["model"])
            for model in self._models:
                counter.add_metric([model.name], value(model))
            yield counter
        state = GaugeMetricFamily("headrace_model_state", "1 for the state that the model is in.", labels=["model", "state"])
        for model in self._models:
            for known in STATES:
                state.add_metric([model.name, known], float(model.state == known))
        yield state
