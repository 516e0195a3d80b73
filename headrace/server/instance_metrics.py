"""Metrics of models that several engine processes serve: one line an instance, and what moves between them did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.instances.group import InstanceGroup, InstanceStatus
from headrace.instances.ray_hall import RayHall
from headrace.server.served_model import ServedModel

_GAUGES: tuple[tuple[str, str, Callable[[InstanceStatus], float]], ...] = (
    ("headrace_instance_serving", "1 while the instance takes requests.", lambda one: one.state == "serving"),
    ("headrace_instance_requests", "Requests that the instance has.", lambda one: one.requests),
    ("headrace_instance_running", "Sequences that hold pages.", lambda one: one.gauges.running),
    ("headrace_instance_waiting", "Sequences that wait for pages.", lambda one: one.gauges.waiting),
    ("headrace_instance_pages_total", "Pages in the instance's pool.", lambda one: one.gauges.pages_total),
    ("headrace_instance_pages_free", "Of these, pages that nobody holds.", lambda one: one.gauges.pages_free),
)
_COUNTERS: tuple[tuple[str, str, Callable[[InstanceGroup], float]], ...] = (
    ("headrace_relocations", "Requests that went on in another instance.", lambda group: group.relocation.counts.done),
    ("headrace_relocations_failed", "Moves after which the request stayed.", lambda group: group.relocation.counts.failed),
    ("headrace_relocated_pages", "Pages that were copied for them.", lambda group: group.relocation.counts.pages),
    ("headrace_relocated_bytes", "Bytes that were copied for them.", lambda group: group.relocation.counts.bytes),
    (
        "headrace_relocated_pages_spared",
        "Pages that the other one had already.",
        lambda group: group.relocation.counts.spared_pages,
    ),
    ("headrace_relocated_bytes_spared", "Bytes that were not copied.", lambda group: group.relocation.counts.spared_bytes),
    ("headrace_relocation_still_seconds", "Time that they stood still.", lambda group: group.relocation.counts.still_seconds),
    ("headrace_handoffs", "Requests that went on where tokens are made.", lambda group: group.handoff.done),
    ("headrace_handoffs_refused", "Times that such a request had to stay.", lambda group: group.handoff.refused),
    ("headrace_replays", "Requests that went on elsewhere after their instance ended.", lambda group: group.replays),
    ("headrace_stray_outputs", "Outputs for requests that the instance did not have; 0.", lambda group: group.strays),
)


class InstanceCollector(Collector):
    """Reads the groups when somebody asks; says nothing for models with one engine."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """One family a metric, one line an instance or model."""
        groups = [(model.name, model.group) for model in self._models if model.group is not None]
        if not groups:
            return
        statuses = [(name, group.statuses()) for name, group in groups]
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["model", "instance"])
            for model, each in statuses:
                for one in each:
                    gauge.add_metric([model, str(one.number)], float(value(one)))
            yield gauge
        crashes = CounterMetricFamily("headrace_instance_crashes", "Times its process ended.", labels=["model", "instance"])
        for model, each in statuses:
            for one in each:
                crashes.add_metric([model, str(one.number)], one.crashes)
        yield crashes
        refused = CounterMetricFamily(
            "headrace_instance_refusals",
            "Connections turned away where instances join and take pages.",
            labels=["model", "at", "reason"],
        )
        for model, group in groups:
            for (at, reason), count in group.refusals().items():
                refused.add_metric([model, at, reason], count)
        yield refused
        yield from _of_clusters(groups)
        for name, text, amount in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["model"])
            for model, group in groups:
                counter.add_metric([model], amount(group))
            yield counter


def _of_clusters(groups: Iterable[tuple[str, InstanceGroup]]) -> Iterator[Metric]:
    """What a Ray cluster does for groups whose workers it brings."""
    halls = [(model, group.slots.hall) for model, group in groups if isinstance(group.slots.hall, RayHall)]
    if not halls:
        return
    placed = GaugeMetricFamily("headrace_cluster_workers", "Workers that the Ray cluster runs now.", labels=["model"])
    ended = CounterMetricFamily("headrace_cluster_workers_ended", "Workers that ended in the Ray cluster.", labels=["model"])
    for model, hall in halls:
        if isinstance(hall, RayHall):
            placed.add_metric([model], len(hall.placed))
            ended.add_metric([model], hall.ended)
    yield placed
    yield ended
