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
    """One text or several of one field: queries, or what is looked through. ``most``: tokens of each that are read."""

    given: str | list[str]
    param: str
    most: int | None = None

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return [self.given] if isinstance(self.given, str) else self.given

    @property
    def places(self) -> list[str]:
        """The path of each."""
        return [self.param] if isinstance(self.given, str) else [f"{self.param}[{index}]" for index in range(len(self.given))]

    async def ids(self, language: Language, *, whole: bool = False) -> list[list[int]]:
        """The tokens of each, no more than ``most``; one that ends a whole text stays the last."""
        given = self.given if self.most is None else [language.beginning(text, self.most) for text in self.texts]
        prompts = await language.prompts(given, self.param, limits.MAX_SCORED, whole=whole)
        ended = whole and language.tokenizer.parts.end_id is not None
        return [_cut(prompt.ids, self.most, ended=ended) for prompt in prompts]


def _cut(ids: list[int], most: int | None, *, ended: bool) -> list[int]:
    """At most so many; ``ended``: the last of them is not the text's, and stays."""
    if most is None or len(ids) <= most:
        return ids
    return [*ids[: most - 1], ids[-1]] if ended else ids[:most]


async def score(service: Service, call: Call[ScoreRequest]) -> Response:
    """``POST /score``: one score for each pair."""
    body = call.body
    standing = service.tenants.standing(call.tenant, body)
    first, second = _Side(body.text_1, "text_1"), _Side(body.text_2, "text_2")
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
            service_tier=standing.told_tier,
        )
    )


async def rerank(service: Service, call: Call[RerankRequest]) -> Response:
    """``POST /rerank``: the documents, those that answer the query best first; equal ones in their order."""
    body = call.body
    standing = service.tenants.standing(call.tenant, body)
    texts = [given if isinstance(given, str) else given.text for given in body.documents]
    documents = _Side(texts, "documents", body.max_tokens_per_doc)
    scores, usage = await _scores(service, call, standing, _Side(body.query, "query"), documents)
    order = sorted(range(len(texts)), key=lambda index: (-scores[index], index))
    shown = body.return_documents is not False
    results = [Ranked(index, scores[index], Shown(texts[index]) if shown else msgspec.UNSET) for index in order[: body.top_n]]
    return json_response(
        Ranking(id=new_id("rerank"), model=service.model_name, results=results, usage=usage, service_tier=standing.told_tier)
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
    texts = [_BETWEEN, *(f" {text}" for text in queries.texts)]
    between, *behind = await language.following(texts, [documents.param, *queries.places])
    read = []
    for index, (before, place) in enumerate(zip(await documents.ids(language), documents.places, strict=True)):
        ids = [*before, *between]
        read.append(Text(ids + behind[index % len(behind)], place, len(ids)))
    found = await reader.read(read, body)
    scores = [math.exp(math.fsum(one.logprobs) / len(one.logprobs)) for one in found]
    return scores, _usage(read, sum(one.cached for one in found))


async def _by_embedding(reader: Reader, queries: _Side, documents: _Side, body: ScoringBody) -> tuple[list[float], ScoringUsage]:
    language = reader.service.language
    read = [
        Text(ids, place)
        for side in (queries, documents)
        for ids, place in zip(await side.ids(language, whole=True), side.places, strict=True)
    ]
    vectors = [np.asarray(one.vector, np.float64) for one in await reader.read(read, body)]
    first, second = vectors[: len(queries.texts)], vectors[len(queries.texts) :]

    def work() -> list[float]:  # exact sums: those of a library differ from machine to machine
        return [math.fsum((first[index % len(first)] * vector).tolist()) for index, vector in enumerate(second)]

    return await language.aside(work, size=sum(map(len, second))), _usage(read, 0)


def _usage(read: Sequence[Text], cached: int) -> ScoringUsage:
    count = sum(len(text.ids) for text in read)
    return ScoringUsage(count, count, cached)
