"""Handler of embeddings: pooled hidden states of the served model, of unit length."""

from __future__ import annotations

import base64

import msgspec
import numpy as np
from starlette.responses import Response

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.errors import HeadraceError
from headrace.server.language import Prompt
from headrace.server.protocol import limits
from headrace.server.protocol.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from headrace.server.rendering import internal_error, json_response, table_error
from headrace.server.requests import Call
from headrace.server.service import Service
from headrace.server.tenants import Standing


async def embed(service: Service, call: Call[EmbeddingRequest]) -> Response:
    """``POST /embeddings``. With ``dimensions`` the first values are kept and made unit length again."""
    body = call.body
    standing = service.tenants.standing(call.tenant, body)
    language = service.language
    hidden = service.engine.ready.hidden if service.engine.ready is not None else 0
    if body.dimensions is not None and body.dimensions > hidden:
        raise HeadraceError("invalid_value", f"'dimensions' must be at most {hidden}.", param="dimensions")
    prompts = await language.prompts(body.input, "input", limits.MAX_EMBEDDING_INPUTS)
    for prompt in prompts:
        if len(prompt.ids) > language.context_length:
            message = f"'{prompt.param}' has {len(prompt.ids):,} tokens; the model's context holds {language.context_length:,}."
            raise HeadraceError("context_length_exceeded", message, param=prompt.param)
    count = sum(len(prompt.ids) for prompt in prompts)
    deadline = body.deadline_ms / 1000 if body.deadline_ms is not None else None
    with service.admitted(len(prompts), count, call.claim):
        vectors = await _run(service, prompts, deadline, standing)
    data = [
        Embedding(index=index, embedding=_encode(_shortened(vector, body.dimensions), body.encoding_format == "base64"))
        for index, vector in enumerate(vectors)
    ]
    service.metrics.of(service.base_name).prompt_tokens.inc(count)
    service.metrics.tenants.of(standing.label).prompt_tokens.inc(count)
    for counts in service.adapter_counts:
        counts.requests.inc()
        counts.prompt_tokens.inc(count)
    tier = standing.tier if standing.tier is not None else msgspec.UNSET
    return json_response(EmbeddingList(data=data, model=service.model_name, usage=EmbeddingUsage(count, count), service_tier=tier))


async def _run(service: Service, prompts: list[Prompt], deadline: float | None, standing: Standing) -> list[np.ndarray]:
    engine = service.engine
    streams = []
    try:
        for prompt in prompts:
            params = SamplingParams(max_tokens=0)
            submit = Submit(
                engine.new_request_id(), prompt.ids, params, deadline, embed=True, priority=standing.priority,
                tenant=standing.tenant, share=standing.tenant, weight=standing.weight, adapters=service.adapters,
            )  # fmt: skip
            streams.append(engine.submit(submit))
        vectors = []
        for stream in streams:
            found: list[float] | None = None
            async for outputs in stream:
                for output in outputs:
                    if output.finish == "deadline":
                        raise table_error("deadline_exceeded")
                    found = output.embedding if output.embedding is not None else found
            if found is None:
                raise internal_error()
            vectors.append(np.asarray(found, dtype=np.float32))
        return vectors
    finally:
        for stream in streams:
            stream.cancel()


def _shortened(vector: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first values, as unit vector."""
    kept = vector if dimensions is None else vector[:dimensions]
    length = float(np.sqrt(np.sum(kept.astype(np.float64) ** 2)))
    return (kept / length).astype(np.float32) if length > 0 else kept


def _encode(vector: np.ndarray, as_base64: bool) -> list[float] | str:
    if as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    floats: list[float] = vector.astype(np.float64).tolist()
    return floats
