"""Handlers that show what the model would see: tokenise, detokenise."""

from __future__ import annotations

from starlette.responses import Response

from headrace.server.protocol.tokens import (
    DetokenizeAnswer,
    DetokenizeRequest,
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
    language = service.language
    language.check_ids(body.ids, "ids")
    skip = bool(body.skip_special)
    text = await language.aside(lambda: language.decode(body.ids, skip_special=skip), size=len(body.ids))
    return json_response(DetokenizeAnswer(text))
