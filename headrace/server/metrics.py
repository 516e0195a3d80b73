"""Everything measured, under names with units; one registry per server, so that two servers in a process never mix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.engine.gauge_sums import sum_of
from headrace.engine.training_wire import TrainingGauges
from headrace.engine.wire import AdapterGauges, KeptGauges, MoveGauges, SpeculationGauges, ViewGauges
from headrace.server.adapter_metrics import AdapterMetrics
from headrace.server.desk_metrics import DeskCollector
from headrace.server.instance_metrics import InstanceCollector
from headrace.server.loop_lag import LoopLag
from headrace.server.model_metrics import ModelCollector
from headrace.server.observing.engine_aliases import EngineAliases
from headrace.server.observing.exporter import TraceMetrics
from headrace.server.observing.journal import Journal
from headrace.server.observing.per_model import ModelCounts, ModelMetrics
from headrace.server.observing.windows import LatencyWindows
from headrace.server.served_model import ServedModel
from headrace.server.speculation_metrics import speculation_metrics
from headrace.server.tenant_metrics import TenantMetrics
from headrace.server.training_metrics import training_metrics


class Metrics:
    """Counters and histograms of the API process, and the engine's gauges read at scrape time."""

    def __init__(self, models: Iterable[ServedModel], lag: LoopLag) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "headrace_http_requests", "HTTP requests by route and status.", ["route", "status"], registry=registry
        )
        self.tenants = TenantMetrics(registry)
        self.adapters = AdapterMetrics(registry)
        self.traces = TraceMetrics()
        registry.register(self.traces)
        self.journal = Journal()
        self.windows = LatencyWindows()
        self._by_model = ModelMetrics(registry)
        for model in models:
            self._by_model.of(model.name)
        self.registry.register(_EngineCollector(models, lag))
        self.registry.register(ModelCollector(models))
        self.registry.register(EngineAliases(models, self.journal))
        self.registry.register(InstanceCollector(models))
        self.lasting = DeskCollector()
        self.registry.register(self.lasting)
        self._memory = Gauge(
            "headrace_process_memory_bytes", "Memory of each process; shared pages count by their share (PSS).", ["process"],
            registry=registry,
        )  # fmt: skip

    def of(self, model: str) -> ModelCounts:
        """What the requests of one model are counted in."""
        return self._by_model.of(model)

    def page(self, memory: Mapping[str, int] | None = None) -> bytes:
        """The Prometheus text page; ``memory``: bytes of each process as just looked up."""
        for process, size in (memory or {}).items():
            self._memory.labels(process).set(size)
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Turns the engines' newest gauges into metrics when somebody asks: one sum over all models."""

    def __init__(self, models: Iterable[ServedModel], lag: LoopLag) -> None:
        self._models = models
        self._lag = lag

    def collect(self) -> Iterator[Metric]:
        states = [model.gauges() for model in self._models]
        state = sum_of(states)
        for name, text, value in (
            ("headrace_requests_running", "Sequences that hold pages.", state.running),
            ("headrace_requests_waiting", "Sequences that wait for pages.", state.waiting),
            ("headrace_requests_live", "Requests between submit and end.", sum(model.live for model in self._models)),
            ("headrace_pages_total", "Pages in the pool.", state.pages_total),
            ("headrace_pages_free", "Pages that nobody holds.", state.pages_free),
            ("headrace_pages_cached", "Of these, pages kept for prompts that begin alike.", state.pages_cached),
            ("headrace_event_loop_lag_seconds", "Worst recent lateness of the event loop.", self._lag.worst()),
            ("headrace_event_loop_blocked_seconds", "The part of it that was our own doing.", self._lag.worst_blocked()),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        for name, text, amount in (
            ("headrace_engine_steps", "Executions of the model.", state.steps),
            ("headrace_engine_step_seconds", "Time inside steps.", state.step_seconds),
            ("headrace_engine_overhead_seconds", "Time of scheduling, assembly, sampling and commit.", state.overhead_seconds),
            ("headrace_engine_prompt_tokens", "Prompt tokens computed.", state.prompt_tokens),
            ("headrace_engine_generated_tokens", "Tokens sampled.", state.generated_tokens),
            ("headrace_engine_preemptions", "Items that gave their pages back.", state.preemptions),
            ("headrace_engine_recomputed_tokens", "Tokens computed again after preemption.", state.recomputed_tokens),
            ("headrace_prefix_lookups", "Admissions that asked for known pages.", state.prefix_lookups),
            ("headrace_prefix_found_tokens", "Tokens whose pages were found.", state.prefix_found_tokens),
            ("headrace_prefix_evictions", "Known pages forgotten to make room.", state.prefix_evictions),
        ):
            yield CounterMetricFamily(name, text, value=amount)
        yield from _moves(state.moves or MoveGauges(), [one.moves or MoveGauges() for one in states])
        yield from _views(state.views or ViewGauges())
        yield from _kept(state.kept or KeptGauges(), [one.kept or KeptGauges() for one in states])
        yield from speculation_metrics(state.speculation or SpeculationGauges())
        yield from training_metrics(state.training or TrainingGauges())
        yield from _adapters(state.adapters or AdapterGauges(), [one.adapters or AdapterGauges() for one in states])


def _moves(moves: MoveGauges, each: list[MoveGauges]) -> Iterator[Metric]:
    yield GaugeMetricFamily("headrace_moves_in_flight", "Pieces on their way between pool and disk.", value=moves.under_way)
    yield GaugeMetricFamily("headrace_swap_pages_stored", "Pages that the disk holds.", value=moves.stored_pages)
    for name, text, amount in (
        ("headrace_swapped_out_pages", "Pages written to disk.", moves.written_pages),
        ("headrace_swapped_out_bytes", "Bytes written to disk.", sum(one.written_pages * one.page_bytes for one in each)),
        ("headrace_swapped_in_pages", "Pages read from disk.", moves.read_pages),
        ("headrace_swapped_in_bytes", "Bytes read from disk.", sum(one.read_pages * one.page_bytes for one in each)),
        ("headrace_swap_pieces", "Writes and reads, each of adjacent pages.", moves.writes + moves.reads),
        ("headrace_swap_reused_pages", "Pages that left without being written again.", moves.reused_pages),
        ("headrace_swap_rescues", "Sequences that came back before they had left.", moves.rescues),
        ("headrace_swap_failures", "Pieces that could not be carried.", moves.failures),
        ("headrace_swap_wait_seconds", "Time in which the engine waited for pages.", moves.wait_seconds),
    ):
        yield CounterMetricFamily(name, text, value=amount)


def _views(views: ViewGauges) -> Iterator[Metric]:
    yield GaugeMetricFamily("headrace_view_ranges", "Sequences whose pages are mapped one after the other.", value=views.ranges)
    yield GaugeMetricFamily("headrace_view_maps", "Mappings of the system that views take.", value=views.maps)
    for name, text, amount in (
        ("headrace_view_pages_mapped", "Pages mapped when a step needed them.", views.shown_pages),
        ("headrace_view_pages_ahead", "Pages mapped beside the step before.", views.ahead_pages),
        ("headrace_view_pages_kept", "Pages that a new sequence found mapped.", views.kept_pages),
        ("headrace_view_refusals", "Sequences read through their tables for want of mappings.", views.refused),
        ("headrace_view_reclaims", "Resting ranges cleared for others.", views.reclaimed),
        ("headrace_view_failures", "Mappings that the system refused.", views.failures),
        ("headrace_view_wait_seconds", "Time in which steps waited for views.", views.inline_seconds),
        ("headrace_view_beside_seconds", "Time of mapping beside steps.", views.beside_seconds),
    ):
        yield CounterMetricFamily(name, text, value=amount)


def _kept(kept: KeptGauges, each: list[KeptGauges]) -> Iterator[Metric]:
    yield GaugeMetricFamily("headrace_prefix_disk_pages", "Pages that the disk keeps for later prompts.", value=kept.stored_pages)
    yield GaugeMetricFamily("headrace_prefix_disk_pages_total", "Pages that it may keep.", value=kept.total_pages)
    for name, text, amount in (
        ("headrace_prefix_disk_hits", "Requests that got pages from the disk.", kept.hits),
        ("headrace_prefix_disk_read_bytes", "Bytes read for them.", sum(one.read_pages * one.page_bytes for one in each)),
        (
            "headrace_prefix_disk_written_bytes",
            "Bytes of pages that were kept.",
            sum(one.written_pages * one.page_bytes for one in each),
        ),
        ("headrace_prefix_disk_failures", "Pieces that could not be written or read.", kept.failures),
    ):
        yield CounterMetricFamily(name, text, value=amount)


def _adapters(adapters: AdapterGauges, each: list[AdapterGauges]) -> Iterator[Metric]:
    for name, text, value in (
        ("headrace_adapters_registered", "Adapters that have names.", adapters.registered),
        ("headrace_adapters_resident", "Adapters that lie in pages.", adapters.resident),
        ("headrace_adapters_loading", "Adapters that are being read.", adapters.loading),
        ("headrace_adapter_pages", "Pages that adapters hold.", adapters.adapter_pages),
        ("headrace_adapter_bytes", "Bytes of them.", sum(one.adapter_pages * one.page_bytes for one in each)),
    ):
        yield GaugeMetricFamily(name, text, value=value)
    for name, text, amount in (
        ("headrace_adapter_loads", "Times an adapter was read into pages.", adapters.loads),
        ("headrace_adapter_load_seconds", "Time of that, beside steps.", adapters.load_seconds),
        ("headrace_adapter_evictions", "Adapters whose pages others needed.", adapters.evictions),
        ("headrace_adapter_failures", "Loads that came to nothing.", adapters.failures),
    ):
        yield CounterMetricFamily(name, text, value=amount)
