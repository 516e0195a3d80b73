"""Handlers of ``/score`` and ``/rerank``: how well texts fit each other.

Two ways to judge a pair. A model that was made for vectors compares them (their cosine). Any other is asked how likely the query is
behind the document, the geometric mean of its tokens' probabilities: what was measured to order documents far better than pooled
states of a model that was taught to write. Source: query likelihood, as in "Improving Passage Retrieval with Zero-Shot Question
Generation". The query stands behind, so that a document which was scored before is not read again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from starlette.responses import Response

from headrace.errors import HeadraceError
from headrace.server.identity import new_id
from headrace.server.language import Language
from headrace.server.protocol import limits
from headrace.server.protocol.scoring import (
    Ranked,
    Ranking,
    RerankRequest,
    Score,
    ScoreList,
    ScoreRequest,
    ScoringBody,
    ScoringUsage,
    Shown,
)
from headrace.server.reading import Reader, Text
from headrace.server.rendering import json_response
from headrace.server.requests import Call
from headrace.server.service import Service
from headrace.server.tenants import Standing

_BETWEEN = "\n\nA search query that this text answers:"


@dataclass(frozen=True, slots=True)
class _Side:
    """Texts of one field: those before (``queries``) or those that are looked through. ``most``: tokens of each that are read."""

    texts: Sequence[str]
    param: str
    most: int | None = None

    def place(self, index: int) -> str:
        """The path of one of them."""
        return f"{self.param}[{index}]" if len(self.texts) > 1 else self.param


async def score(service: Service, call: Call[ScoreRequest]) -> Response:
    """``POST /score``: one score for each pair."""
    body = call.body
    standing = service.tenants.standing(call.tenant, body)
    first, second = (_Side([given] if isinstance(given, str) else given, param) for given, param in _fields(body))
    if len(first.texts) not in (1, len(second.texts)):
        problem = f"'text_1' must be one text, or as many as 'text_2' has ({len(second.texts)}), not {len(first.texts)}."
        raise HeadraceError("invalid_value", problem, param="text_1")
    scores, usage = await _scores(service, call, standing, first, second)
    return json_response(
        ScoreList(
            id=new_id("score"),
            created=int(time.time()),
            model=service.model_name,
            data=[Score(index, value) for index, value in enumerate(scores)],
            usage=usage,
            service_tier=_tier(standing),
        )
    )


def _fields(body: ScoreRequest) -> tuple[tuple[str | list[str], str], ...]:
    return (body.text_1, "text_1"), (body.text_2, "text_2")


async def rerank(service: Service, call: Call[RerankRequest]) -> Response:
    """``POST /rerank``: the documents, those that answer the query best first; equal ones in their order."""
    body = call.body
    standing = service.tenants.standing(call.tenant, body)
    texts = [given if isinstance(given, str) else given.text for given in body.documents]
    documents = _Side(texts, "documents", body.max_tokens_per_doc)
    scores, usage = await _scores(service, call, standing, _Side([body.query], "query"), documents)
    order = sorted(range(len(texts)), key=lambda index: (-scores[index], index))
    shown = body.return_documents is not False
    results = [Ranked(index, scores[index], Shown(texts[index]) if shown else msgspec.UNSET) for index in order[: body.top_n]]
    return json_response(
        Ranking(id=new_id("rerank"), model=service.model_name, results=results, usage=usage, service_tier=_tier(standing))
    )


async def _scores(
    service: Service, call: Call[Any], standing: Standing, queries: _Side, documents: _Side
) -> tuple[list[float], ScoringUsage]:
    """One score for each document with its query (or the only one), and what was read for them."""
    body: ScoringBody = call.body
    reader = Reader(service, standing, call.claim)
    method = body.method or ("embedding" if service.language.makes_vectors else "likelihood")
    judge = _by_likelihood if method == "likelihood" else _by_embedding
    return await judge(reader, queries, documents, body)


async def _by_likelihood(reader: Reader, queries: _Side, documents: _Side, body: ScoringBody) -> tuple[list[float], ScoringUsage]:
    language = reader.service.language
    between = await language.following(_BETWEEN, documents.param)
    behind = [await language.following(f" {text}", queries.place(index)) for index, text in enumerate(queries.texts)]
    read = []
    for index, before in enumerate(await _ids(language, documents)):
        ids = [*before, *between]
        read.append(Text(ids + behind[index % len(behind)], documents.place(index), len(ids)))
    found = await reader.read(read, body)
    scores = [math.exp(math.fsum(one.logprobs) / len(one.logprobs)) for one in found]
    return scores, _usage(read, sum(one.cached for one in found))


async def _by_embedding(reader: Reader, queries: _Side, documents: _Side, body: ScoringBody) -> tuple[list[float], ScoringUsage]:
    sides = [(side, await _ids(reader.service.language, side, whole=True)) for side in (queries, documents)]
    read = [Text(ids, side.place(index)) for side, texts in sides for index, ids in enumerate(texts)]
    vectors = [np.asarray(one.vector, np.float64) for one in await reader.read(read, body)]
    first, second = vectors[: len(queries.texts)], vectors[len(queries.texts) :]
    # Exact sums: those of a library differ from machine to machine.
    scores = [math.fsum((first[index % len(first)] * vector).tolist()) for index, vector in enumerate(second)]
    return scores, _usage(read, 0)


async def _ids(language: Language, side: _Side, *, whole: bool = False) -> list[list[int]]:
    texts = [text if side.most is None else language.beginning(text, side.most) for text in side.texts]
    prompts = await language.prompts(texts, side.param, limits.MAX_SCORED, whole=whole)
    return [prompt.ids[: side.most] for prompt in prompts]


def _usage(read: Sequence[Text], cached: int) -> ScoringUsage:
    count = sum(len(text.ids) for text in read)
    return ScoringUsage(count, count, cached)


def _tier(standing: Standing) -> str | msgspec.UnsetType:
    return standing.tier if standing.tier is not None else msgspec.UNSET
