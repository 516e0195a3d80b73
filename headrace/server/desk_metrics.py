"""What the server keeps and does without a client waiting: files, batches and fine-tuning jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from headrace.server.desk import Desk

_BATCH_STATES = "validating", "in_progress", "finalizing", "cancelling"
_JOB_STATES = "validating_files", "queued", "running", "paused"


class DeskCollector(Collector):
    """Reads the desk when somebody asks; zeros while the server has none. Work that has ended is not shown."""

    def __init__(self) -> None:
        self.desk: Desk | None = None

    def collect(self) -> Iterator[Metric]:
        """The families."""
        files, size = self.desk.files.totals() if self.desk is not None else (0, 0)
        batches = self.desk.batches.states() if self.desk is not None else Counter[str]()
        jobs = self.desk.tuning.states() if self.desk is not None else Counter[str]()
        yield GaugeMetricFamily("headrace_files", "Files that the server keeps.", value=files)
        yield GaugeMetricFamily("headrace_file_bytes", "Bytes of them.", value=size)
        yield _by_state("headrace_batches", "Batches that have not ended.", _BATCH_STATES, batches)
        lines = self.desk.batches.lines if self.desk is not None else 0
        yield CounterMetricFamily("headrace_batch_lines", "Lines of batches that this server has run.", value=lines)
        yield _by_state("headrace_fine_tuning_jobs", "Fine-tuning jobs that have not ended.", _JOB_STATES, jobs)


def _by_state(name: str, text: str, states: tuple[str, ...], counts: Counter[str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        family.add_metric([state], counts[state])
    return family
