"""Calls that only read texts and generate nothing: they run together, and are counted as what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.engine.client import RequestStream
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.errors import HeadraceError
from headrace.server.rate_limits import Claim
from headrace.server.rendering import internal_error, table_error
from headrace.server.service import Service
from headrace.server.tenants import Standing


class Limited(Protocol):
    """The field of a body that ends a call when its time is up."""

    @property
    def deadline_ms(self) -> int | None:
        """Milliseconds from now."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text to read. ``scored_from``: the first token whose log-probability is wanted; ``None``: the text's vector is."""

    ids: list[int]
    param: str
    scored_from: int | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """What reading gave: a vector of length 1, or log-probabilities of the scored tokens; ``cached`` tokens were read before."""

    vector: list[float] | None
    logprobs: list[float]
    cached: int


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads: the model, and the caller's standing and allowance."""

    service: Service
    standing: Standing
    claim: Claim

    async def read(self, texts: Sequence[Text], body: Limited) -> list[Read]:
        """All texts, in their order. Raises ``context_length_exceeded``, ``deadline_exceeded``, and what admission refuses."""
        most = self.service.language.context_length
        for text in texts:
            if len(text.ids) > most:
                message = f"'{text.param}' has {len(text.ids):,} tokens; the model's context holds {most:,}."
                raise HeadraceError("context_length_exceeded", message, param=text.param)
        count = sum(len(text.ids) for text in texts)
        deadline = body.deadline_ms / 1000 if body.deadline_ms is not None else None
        with self.service.admitted(len(texts), count, self.claim):
            found = await self._run(texts, deadline)
        self._note(count)
        return found

    async def _run(self, texts: Sequence[Text], deadline: float | None) -> list[Read]:
        streams: list[RequestStream] = []
        try:
            for text in texts:
                streams.append(self.service.engine.submit(self._submit(text, deadline)))
            return [await _outcome(stream, text) for stream, text in zip(streams, texts, strict=True)]
        finally:
            for stream in streams:
                stream.cancel()

    def _submit(self, text: Text, deadline: float | None) -> Submit:
        service, standing = self.service, self.standing
        scored = text.scored_from is not None
        params = SamplingParams(max_tokens=0, prompt_logprobs=0 if scored else None, prompt_logprobs_from=text.scored_from or 0)
        return Submit(
            service.engine.new_request_id(), text.ids, params, deadline, embed=not scored, priority=standing.priority,
            tenant=standing.tenant, share=standing.tenant, weight=standing.weight, adapters=service.adapters,
        )  # fmt: skip

    def _note(self, count: int) -> None:
        metrics = self.service.metrics
        metrics.of(self.service.base_name).prompt_tokens.inc(count)
        metrics.tenants.of(self.standing.label).prompt_tokens.inc(count)
        for counts in self.service.adapter_counts:
            counts.requests.inc()
            counts.prompt_tokens.inc(count)


async def _outcome(stream: RequestStream, text: Text) -> Read:
    vector: list[float] | None = None
    logprobs: list[float] = []
    cached = 0
    async for outputs in stream:
        for output in outputs:
            if output.finish == "deadline":
                raise table_error("deadline_exceeded")
            cached = max(cached, output.cached_tokens)
            vector = output.embedding if output.embedding is not None else vector
            logprobs += [one.logprob for one in output.prompt_logprobs or ()]
    if (vector is None) if text.scored_from is None else not logprobs:
        raise internal_error()
    return Read(vector, logprobs, cached)
