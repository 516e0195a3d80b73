"""Body and answers of embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.common import Adapters, Body, KeepAlive, Name, Priority, ServiceTier, ShortText, TokenId


class EmbeddingRequest(Body, frozen=True, kw_only=True):
    """Body of ``POST /embeddings``. ``dimensions`` keeps the first values and normalises again."""

    input: (
        str
        | Annotated[
            list[str | TokenId | Annotated[list[TokenId], Meta(max_length=limits.MAX_PROMPT_TOKENS)]],
            Meta(min_length=1, max_length=limits.MAX_PROMPT_TOKENS),
        ]
    )
    model: Name | None = None
    adapters: Adapters | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=limits.MAX_DEADLINE_MS)] | None = None
    keep_alive: KeepAlive | None = None
    user: ShortText | None = None
    priority: Priority | None = None
    service_tier: ServiceTier | None = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One vector: floats, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Token counts of an embedding call."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """All vectors of a call, in the order of the input."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
