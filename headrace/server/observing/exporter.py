"""Sends spans to a collector (OTLP over HTTP, as JSON) on a thread of its own: no request ever waits for it."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

import headrace
from headrace.errors import HeadraceError
from headrace.server.observing.spans import Handled, spans_of

logger = logging.getLogger("headrace.server.traces")

MOST_WAITING = 1024
MOST_IN_ONE = 128
LINGER_SECONDS = 0.5
PATIENCE = 5.0
QUIET_SECONDS = 60.0


class SpanExporter:
    """Takes requests that have been answered. When the collector is slow or away, spans are dropped and counted."""

    def __init__(self, endpoint: str) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise HeadraceError("invalid_setting", "otlp_endpoint must begin with http:// or https://", param="otlp_endpoint")
        base = endpoint.rstrip("/")
        self._url = base if base.endswith("/v1/traces") else f"{base}/v1/traces"
        self._waiting: queue.Queue[Handled | None] = queue.Queue(MOST_WAITING)
        self._quiet_until = 0.0
        self.exported = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="headrace-traces", daemon=True)
        self._thread.start()

    def add(self, handled: Handled) -> None:
        """Hand over a request; never waits."""
        parent = handled.origin.parent
        if parent is not None and not parent.sampled:
            return
        try:
            self._waiting.put_nowait(handled)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        try:
            self._waiting.put(None, timeout=1.0)
        except queue.Full:
            return
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while True:
            batch, over = self._batch()
            if batch:
                self._send(batch)
            if over:
                return

    def _batch(self) -> tuple[list[Handled], bool]:
        """What came together, and whether it was the last."""
        found: list[Handled] = []
        until = None
        while len(found) < MOST_IN_ONE:
            try:
                one = self._waiting.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if one is None:
                return found, True
            found.append(one)
            until = until or time.monotonic() + LINGER_SECONDS
        return found, False

    def _send(self, batch: list[Handled]) -> None:
        body = json.dumps(document([span for handled in batch for span in spans_of(handled)])).encode()
        request = urllib.request.Request(self._url, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                answer.read(4096)
            self.exported += len(batch)
        except (OSError, ValueError, urllib.error.URLError) as error:
            self.dropped += len(batch)
            if time.monotonic() >= self._quiet_until:
                self._quiet_until = time.monotonic() + QUIET_SECONDS
                logger.warning("traces of %d requests could not be sent to %s: %s", len(batch), self._url, error)


class TraceMetrics(Collector):
    """What became of traces; ``exporter`` is ``None`` where nobody gets any."""

    def __init__(self) -> None:
        self.exporter: SpanExporter | None = None

    def collect(self) -> Iterator[Metric]:
        """Two counters."""
        exporter = self.exporter
        for name, text, amount in (
            ("headrace_traces_exported", "Requests whose spans a collector took.", exporter.exported if exporter else 0),
            ("headrace_traces_dropped", "Requests whose spans were lost: it is slow or away.", exporter.dropped if exporter else 0),
        ):
            yield CounterMetricFamily(name, text, value=amount)


def document(spans: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of an export."""
    resource = {
        "attributes": [
            {"key": "service.name", "value": {"stringValue": "headrace"}},
            {"key": "service.version", "value": {"stringValue": headrace.__version__}},
        ]
    }
    scope = {"name": "headrace", "version": headrace.__version__}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}]}
