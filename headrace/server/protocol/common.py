"""Fields that several endpoints share, with their bounds."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.engine.wire import MOST_ADAPTERS, MOST_SCALE
from headrace.scheduling.item import MOST_PRIORITY
from headrace.server.protocol import limits
from headrace.speculation.proposer import MOST_DRAFTED

Name = Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAME_LENGTH)]
StopString = Annotated[str, Meta(min_length=1, max_length=limits.MAX_STOP_LENGTH)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
KeepAlive = Annotated[float, Meta(ge=-1.0, le=1e9)]
Priority = Annotated[int, Meta(ge=-MOST_PRIORITY, le=MOST_PRIORITY)]
ServiceTier = Literal["auto", "default", "flex", "priority"]
ShortText = Annotated[str, Meta(max_length=limits.MAX_NAME_LENGTH)]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request body. A field that a client sends as null counts as absent.

    A field typed ``None`` exists in the API but can't be honoured here: null is accepted, a value is refused.
    """


class StreamOptions(Body, frozen=True, kw_only=True):
    """Extras of a stream. ``continuous_usage_stats``: with ``include_usage``, every event tells the counts so far."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class AdapterScale(Body, frozen=True, kw_only=True):
    """One adapter of a request: its name, and what its change is multiplied by (1 when left out)."""

    id: Name
    scale: Annotated[float, Meta(ge=-MOST_SCALE, le=MOST_SCALE)] | None = None


Adapters = Annotated[list[AdapterScale], Meta(max_length=MOST_ADAPTERS)]


class SpeculationWish(Body, frozen=True, kw_only=True):
    """How many tokens may be drafted for one step of this request."""

    max_tokens: Annotated[int, Meta(ge=0, le=MOST_DRAFTED)]


class SamplingBody(Body, frozen=True, kw_only=True):
    """Sampling fields of both generating endpoints, with the fields that OpenAI clients send and that mean nothing here."""

    model: Name | None = None
    adapters: Adapters | None = None
    n: Annotated[int, Meta(ge=1, le=limits.MAX_CHOICES)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=2.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    seed: Annotated[int, Meta(ge=0, le=limits.MAX_SEED)] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=limits.MAX_TOKENS)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=limits.MAX_TOKENS)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=limits.MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=limits.MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=limits.MAX_DEADLINE_MS)] | None = None
    keep_alive: KeepAlive | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    speculation: Literal["auto", "off"] | SpeculationWish | None = None
    regex: Annotated[str, Meta(min_length=1, max_length=limits.MAX_GRAMMAR_CHARS)] | None = None
    choice: Annotated[list[Annotated[str, Meta(min_length=1, max_length=4096)]], Meta(min_length=1, max_length=256)] | None = None
    grammar: None = None
    user: ShortText | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    priority: Priority | None = None
    service_tier: ServiceTier | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory"] | None = None


IGNORED: dict[str, str] = {
    "user": "Accepted and not used: nothing here is kept per end user.",
    "metadata": "Accepted and not used: answers are not stored.",
    "store": "Only false: answers are never stored.",
    "safety_identifier": "Accepted and not used.",
    "prompt_cache_key": "Accepted and not used: pages of earlier prompts are found by their tokens.",
    "prompt_cache_retention": "Only in_memory: nothing is kept on disk.",
}
"""Fields that clients send and that are meaningless here, with what is allowed; the docs table is made from it."""

UNSUPPORTED: dict[str, str] = {
    "grammar": "use response_format, regex or choice: an ambiguous grammar would slow every other request down",
    "audio": "text output only",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "modalities": 'only ["text"] is served',
    "moderation": "no moderation model is served",
    "prompt_cache_options": "pages of earlier prompts are found without being asked for",
    "reasoning_effort": 'no reasoning model is served; only "none"',
    "suffix": "no fill-in-the-middle template is served",
    "verbosity": 'the model has no such control; only "medium"',
    "web_search_options": "the server never fetches from the network",
    "store": "answers are never stored; only false",
    "service_tier": 'only "auto", "default", "flex" or "priority"',
    "prompt_cache_retention": 'only "in_memory"',
    "include_obfuscation": "only false",
}
"""Fields of the API that can't be honoured, wholly or beyond one value; a refused value gives ``unsupported_parameter``."""
