"""What adapters were used for, for as many of them as have a label of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

MOST_LABELS = 64
"""Adapters with a label of their own, the first that were used; all others share one, so that thousands don't flood a dashboard."""
OTHERS = "(other)"  # no adapter can be called that

_COUNTERS = {
    "requests": "Requests that used the adapter.",
    "prompt_tokens": "Prompt tokens of the adapter's answered requests.",
    "generated_tokens": "Tokens delivered with the adapter.",
}


@dataclass(frozen=True, slots=True)
class AdapterCounts:
    """The counters of one adapter."""

    requests: Counter
    prompt_tokens: Counter
    generated_tokens: Counter


class AdapterMetrics:
    """Counters by model and adapter. A request that sums several counts for each of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model", "adapter"]
        self._counters = {
            name: Counter(f"headrace_adapter_{name}", text, labels, registry=registry) for name, text in _COUNTERS.items()
        }
        self._known: dict[tuple[str, str], AdapterCounts] = {}

    def of(self, model: str, names: Sequence[str]) -> list[AdapterCounts]:
        """The counters of some adapters of a model."""
        return [self._of(model, name) for name in names]

    def _of(self, model: str, name: str) -> AdapterCounts:
        key = model, name
        if key not in self._known and len(self._known) >= MOST_LABELS:
            key = model, OTHERS
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = AdapterCounts(**{what: counter.labels(*key) for what, counter in self._counters.items()})
        return found
