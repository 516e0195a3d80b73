"""Times one generating request: writes its histograms, the windows of latencies, and its life for the journal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.server.observing.life import Life

if TYPE_CHECKING:
    from headrace.server.metrics import Metrics
    from headrace.server.tenant_metrics import TenantCounts


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of a request when it goes to the engine."""

    request_id: str
    model: str
    name: str
    tenant: str
    label: str
    prompt_tokens: int
    choices: int
    max_tokens: int
    engine_id: int


class RequestClock:
    """Made when the request goes to the engine, told of what comes back."""

    def __init__(self, metrics: Metrics, tenant: TenantCounts, told: Told) -> None:
        self._metrics = metrics
        self._tenant = tenant
        self._of = metrics.of(told.model)
        self._start = time.monotonic()
        self._last: dict[int, float] = {}
        self.life = Life(
            told.request_id, told.model, told.name, told.tenant, told.label, time.time(), self._start,
            told.prompt_tokens, told.choices, told.engine_id, told.max_tokens,
        )  # fmt: skip
        metrics.journal.begin(self.life)

    def tokens(self, choice: int, count: int, queued: float | None) -> None:
        """``count`` tokens of a choice have just arrived; ``queued`` is the engine's queue time when it says so."""
        now = time.monotonic()
        life = self.life
        if queued is not None:
            self._of.queue.observe(queued)
            self._tenant.queue_seconds.inc(queued)
            life.queued = min(queued, now - self._start)
        if not count:
            return
        if choice not in self._last:
            if not self._last:
                life.first = now - self._start
                self._of.first_token.observe(life.first)
                self._metrics.windows.first_token(life.first)
                self._tenant.requests.inc()
                self._tenant.first_token_seconds.inc(life.first)
        else:
            gap = (now - self._last[choice]) / count
            for _ in range(count):
                self._of.gap.observe(gap)
            self._metrics.windows.gaps(gap, count)
            life.longest_gap = max(life.longest_gap, gap)
        self._last[choice] = now
        life.last = now - self._start
        life.generated_tokens += count
        self._of.generated_tokens.inc(count)
        self._tenant.generated_tokens.inc(count)

    def choice_ended(self, reason: str) -> None:
        """One choice has ended, for this reason."""
        self.life.finish.append(reason)
        self._of.finished(reason).inc()

    def end(self, cached_tokens: int) -> None:
        """The request's last token has been delivered."""
        life = self.life
        life.cached_tokens = cached_tokens
        self.stop()
        assert life.ended is not None, "a life that has stopped has its end"
        self._of.whole.observe(life.ended)
        if life.first is not None:
            began = life.queued or 0.0
            self._of.prefill.observe(max(0.0, life.first - began))
            self._of.decode.observe(life.ended - life.first)
            self._of.inference.observe(life.ended - began)
        self._of.request_prompt.observe(life.prompt_tokens)
        self._of.request_generated.observe(life.generated_tokens)
        self._of.prompt_tokens.inc(life.prompt_tokens)
        self._of.cached_tokens.inc(cached_tokens)
        self._tenant.prompt_tokens.inc(life.prompt_tokens)
        self._tenant.cached_tokens.inc(cached_tokens)

    def stop(self) -> None:
        """Nothing more is expected, whether it was all there or not. A second call does nothing."""
        self._metrics.journal.end(self.life)
