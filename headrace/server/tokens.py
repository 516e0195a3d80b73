"""Handlers that show what the model would see: tokenise, detokenise; and the list of models."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from headrace.errors import HeadraceError
from headrace.server.protocol.tokens import (
    DetokenizeAnswer,
    DetokenizeRequest,
    ModelCard,
    ModelList,
    TokenInfo,
    TokenizeAnswer,
    TokenizeRequest,
)
from headrace.server.rendering import encode_json, encode_slices, json_response
from headrace.server.requests import Call
from headrace.server.service import Service


async def tokenize(service: Service, call: Call[TokenizeRequest]) -> Response:
    """``POST /tokenize``: ids, and each token's text, character range and special flag."""
    body = call.body
    service.check_model(body.model)
    language = service.language

    def work() -> bytes:
        found = language.spans(body.text, parse_special=bool(body.parse_special), bos=body.add_special is not False)
        infos = [
            TokenInfo(token, language.token_text(token), start, end, language.tokenizer.is_special(token))
            for token, start, end in found
        ]
        ids = [info.id for info in infos]
        return encode_json(TokenizeAnswer(len(ids), language.context_length, ids, encode_slices(infos)))

    # Ids of a text of any length are an answer here, but a body-sized one must not hold the loop.
    data = await language.aside(work, size=4 * len(body.text))
    return Response(data, media_type="application/json")


async def detokenize(service: Service, call: Call[DetokenizeRequest]) -> Response:
    """``POST /detokenize``: the text of ids; special tokens are shown unless ``skip_special``."""
    body = call.body
    service.check_model(body.model)
    language = service.language
    language.check_ids(body.ids, "ids")
    skip = bool(body.skip_special)
    text = await language.aside(lambda: language.decode(body.ids, skip_special=skip), size=len(body.ids))
    return json_response(DetokenizeAnswer(text))


async def list_models(service: Service, call: Call[Any]) -> Response:
    """``GET /models``."""
    return json_response(ModelList(data=[_card(service)]))


async def show_model(service: Service, call: Call[Any]) -> Response:
    """``GET /models/{id}``."""
    service.check_model(call.path["id"])
    return json_response(_card(service))


def _card(service: Service) -> ModelCard:
    if service.engine.ready is None:
        raise HeadraceError("loading", "The model is still loading.")
    return ModelCard(
        id=service.model_name,
        created=service.started,
        root=service.engine.ready.model,
        max_model_len=service.language.context_length,
        state="hot",
    )
