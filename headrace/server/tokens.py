"""Handlers that show what the model would see: tokenise, detokenise, and what its tokenizer is."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from headrace.server.protocol.tokens import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
    TokenizerQuery,
    TokenPlace,
)
from headrace.server.rendering import encode_json, encode_slices, json_response
from headrace.server.requests import Call
from headrace.server.service import Service


async def tokenize(service: Service, call: Call[TokenizeRequest]) -> Response:
    """``POST /tokenize``: ids, and where asked each token's text and its place in the text."""
    body = call.body
    language = service.language

    def work() -> bytes:
        found = language.spans(body.prompt, parse_special=body.parse_special is not False, bos=body.add_special_tokens is not False)
        ids = [token for token, _, _ in found]
        answer = TokenizeAnswer(len(ids), language.context_length, ids)
        if body.return_token_strs:
            answer = msgspec.structs.replace(answer, token_strs=encode_slices([language.token_text(token) for token in ids]))
        if body.return_offsets:
            is_special = language.tokenizer.is_special
            places = [TokenPlace(start, end, is_special(token)) for token, start, end in found]
            answer = msgspec.structs.replace(answer, offsets=encode_slices(places))
        return encode_json(answer)

    # Ids of a text of any length are an answer here, but a body-sized one must not hold the loop.
    data = await language.aside(work, size=4 * len(body.prompt))
    return Response(data, media_type="application/json")


async def detokenize(service: Service, call: Call[DetokenizeRequest]) -> Response:
    """``POST /detokenize``: the text of ids; special tokens are shown unless ``skip_special``."""
    body = call.body
    language = service.language
    language.check_ids(body.tokens, "tokens")
    skip = bool(body.skip_special)
    text = await language.aside(lambda: language.decode(body.tokens, skip_special=skip), size=len(body.tokens))
    return json_response(DetokenizeAnswer(text))


async def describe(service: Service, call: Call[TokenizerQuery]) -> Response:
    """``GET /tokenizer_info``: the tokens and the template that evaluation tools ask for before they count and render."""
    language = service.language
    tokenizer = language.tokenizer
    info = TokenizerInfo(
        model=service.model_name,
        vocab_size=tokenizer.vocab_size,
        model_max_length=language.context_length,
        add_bos_token=tokenizer.add_bos,
        bos_token=tokenizer.bos_token or None,
        eos_token=tokenizer.eos_token or None,
        # A decoder is never padded here; tools that pad by themselves use its end, as its own files mostly say.
        pad_token=tokenizer.eos_token or None,
        special_tokens=[tokenizer.token_text(token) for token in sorted(tokenizer.special_ids)],
        chat_template=language.template.source,
    )
    return json_response(info)
