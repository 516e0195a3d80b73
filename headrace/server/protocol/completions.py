"""Body and answers of plain completions."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.common import SamplingBody, TokenId
from headrace.server.protocol.usage import Usage

TokenIds = Annotated[list[TokenId], Meta(max_length=limits.MAX_PROMPT_TOKENS)]


class CompletionRequest(SamplingBody, frozen=True, kw_only=True):
    """Body of ``POST /completions``. ``prompt`` is a text, texts, token ids, or lists of token ids."""

    prompt: str | Annotated[list[str | TokenId | TokenIds], Meta(min_length=1, max_length=limits.MAX_PROMPT_TOKENS)]
    best_of: Annotated[int, Meta(ge=1, le=limits.MAX_CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    suffix: Literal[""] | None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Parallel lists over tokens; ``text_offset`` counts characters from the start of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One choice, or its part of a chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    prompt_logprobs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer, or one event of a stream (then ``usage`` is null or absent but for the last)."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
