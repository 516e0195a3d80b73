"""Handler of embeddings: pooled hidden states of the served model, of unit length."""

from __future__ import annotations

import base64

import numpy as np
from starlette.responses import Response

from headrace.errors import HeadraceError
from headrace.server.protocol import limits
from headrace.server.protocol.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from headrace.server.reading import Reader, Text
from headrace.server.rendering import json_response
from headrace.server.requests import Call
from headrace.server.service import Service


async def embed(service: Service, call: Call[EmbeddingRequest]) -> Response:
    """``POST /embeddings``. With ``dimensions`` the first values are kept and made unit length again."""
    body = call.body
    standing = service.tenants.standing(call.tenant, body)
    hidden = service.engine.ready.hidden if service.engine.ready is not None else 0
    if body.dimensions is not None and body.dimensions > hidden:
        raise HeadraceError("invalid_value", f"'dimensions' must be at most {hidden}.", param="dimensions")
    prompts = await service.language.prompts(body.input, "input", limits.MAX_EMBEDDING_INPUTS, whole=True)
    found = await Reader(service, standing, call.claim).read([Text(prompt.ids, prompt.param) for prompt in prompts], body)
    count = sum(len(prompt.ids) for prompt in prompts)
    data = [
        Embedding(index=index, embedding=_encode(_shortened(one.vector or [], body.dimensions), body.encoding_format == "base64"))
        for index, one in enumerate(found)
    ]
    return json_response(
        EmbeddingList(data=data, model=service.model_name, usage=EmbeddingUsage(count, count), service_tier=standing.told_tier)
    )


def _shortened(vector: list[float], dimensions: int | None) -> np.ndarray:
    """The first values, as unit vector."""
    kept = np.asarray(vector, np.float32)[:dimensions]
    length = float(np.sqrt(np.sum(kept.astype(np.float64) ** 2)))
    return (kept / length).astype(np.float32) if length > 0 else kept


def _encode(vector: np.ndarray, as_base64: bool) -> list[float] | str:
    if as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    floats: list[float] = vector.astype(np.float64).tolist()
    return floats
