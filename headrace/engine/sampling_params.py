"""What a request may ask of sampling, checked once at the border and frozen."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from headrace.text.grammar_spec import GrammarSpec

__all__ = ["GrammarSpec", "SamplingParams"]


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sampling of one request.

    ``temperature`` 0 is greedy. ``seed`` fixes the random stream: choice *i* draws from stream (seed, i), token *t*
    from counter *t*, so neighbours, batching and preemption can't change a draw. ``top_logprobs`` ``None`` means no
    logprobs, 0 the chosen token's only. ``prompt_logprobs`` likewise for the prompt's tokens, of which those before
    ``prompt_logprobs_from`` (and always the first) have none. Logprobs are those of the model's own distribution, before
    penalties, bias, mask and temperature.
    """

    max_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] = 128
    min_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=2.0)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    logit_bias: dict[int, Annotated[float, Meta(ge=-100.0, le=100.0)]] = {}
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    n: Annotated[int, Meta(ge=1, le=16)] = 1
    best_of: Annotated[int, Meta(ge=1, le=16)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    prompt_logprobs_from: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    grammar: GrammarSpec | None = None
