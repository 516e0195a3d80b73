"""What each tenant was served, for as many of them as have a name in metrics."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

_COUNTERS = {
    "requests": "Requests of each API key that got a first token.",
    "prompt_tokens": "Prompt tokens of each API key's answered requests.",
    "cached_tokens": "Of these, tokens found in pages.",
    "generated_tokens": "Tokens delivered to each API key.",
    "queue_seconds": "Time from arrival to the first step, summed over each API key's requests.",
    "first_token_seconds": "Time from arrival to the first token, summed over each API key's requests.",
    "limited": "Requests of each API key refused for its limits a minute.",
}


@dataclass(frozen=True, slots=True)
class TenantCounts:
    """The counters of one label."""

    requests: Counter
    prompt_tokens: Counter
    cached_tokens: Counter
    generated_tokens: Counter
    queue_seconds: Counter
    first_token_seconds: Counter
    limited: Counter


class TenantMetrics:
    """Counters by tenant. The caller bounds the labels (:meth:`headrace.server.tenants.Tenants.label`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counters = {
            name: Counter(f"headrace_tenant_{name}", text, ["tenant"], registry=registry) for name, text in _COUNTERS.items()
        }
        self._known: dict[str, TenantCounts] = {}

    def of(self, label: str) -> TenantCounts:
        """The counters of one label; the label of a server without keys is empty."""
        known = self._known.get(label)
        if known is None:
            known = self._known[label] = TenantCounts(**{name: one.labels(label) for name, one in self._counters.items()})
        return known
