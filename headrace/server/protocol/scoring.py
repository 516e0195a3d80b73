"""Bodies and answers of scoring pairs of texts and of putting documents in the order of their relevance."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.server.protocol import limits
from headrace.server.protocol.common import Adapters, Body, KeepAlive, Name, Priority, ServiceTier, ShortText

Text = Annotated[str, Meta(min_length=1)]
Texts = Text | Annotated[list[Text], Meta(min_length=1, max_length=limits.MAX_SCORED)]
Method = Literal["likelihood", "embedding"]


class ScoringBody(Body, frozen=True, kw_only=True):
    """What both calls take. ``method``: how a pair is judged; left out, it is what the model was made for."""

    model: Name | None = None
    method: Method | None = None
    adapters: Adapters | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=limits.MAX_DEADLINE_MS)] | None = None
    keep_alive: KeepAlive | None = None
    user: ShortText | None = None
    priority: Priority | None = None
    service_tier: ServiceTier | None = None


class ScoreRequest(ScoringBody, frozen=True, kw_only=True):
    """Body of ``POST /score``: one text against each of the others, or as many against as many."""

    text_1: Texts
    text_2: Texts


class DocumentText(Body, frozen=True, kw_only=True):
    """A document, as an object."""

    text: Text


class RerankRequest(ScoringBody, frozen=True, kw_only=True):
    """Body of ``POST /rerank``.

    ``top_n``: how many of the best are told. ``max_tokens_per_doc``: more of a document is not read.
    """

    query: Text
    documents: Annotated[list[Text | DocumentText], Meta(min_length=1, max_length=limits.MAX_SCORED)]
    top_n: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS)] | None = None


class ScoringUsage(msgspec.Struct, frozen=True):
    """Tokens that were read, together, and how many of them had been read before."""

    prompt_tokens: int
    total_tokens: int
    cached_tokens: int


class Score(msgspec.Struct, frozen=True):
    """How well one pair fits."""

    index: int
    score: float
    object: str = "score"


class ScoreList(msgspec.Struct, frozen=True, kw_only=True):
    """The pairs' scores, in their order."""

    id: str
    created: int
    model: str
    data: list[Score]
    usage: ScoringUsage
    object: str = "list"
    service_tier: str | msgspec.UnsetType = msgspec.UNSET


class Shown(msgspec.Struct, frozen=True):
    """A document in an answer."""

    text: str


class Ranked(msgspec.Struct, frozen=True):
    """One document: its place in the call, and its score."""

    index: int
    relevance_score: float
    document: Shown | msgspec.UnsetType = msgspec.UNSET


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents, best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: ScoringUsage
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
