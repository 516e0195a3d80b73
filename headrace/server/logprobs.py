"""Logprobs with text and bytes, as chat answers show them."""

from __future__ import annotations

import msgspec

from headrace.engine.wire import TokenLogprob
from headrace.server.language import Language
from headrace.server.protocol.chat import ChatLogprobs, TokenLogprobOut, TopLogprob
from headrace.server.rendering import encode_slices


def chat_logprobs(entries: list[TokenLogprob], language: Language, top: int) -> ChatLogprobs:
    """Entries of a choice or chunk with their ``top`` best candidates."""
    return ChatLogprobs(encode_slices([token_logprob(entry, language, top) for entry in entries]))


def token_logprob(entry: TokenLogprob, language: Language, top: int) -> TokenLogprobOut:
    """One entry; the text has U+FFFD where a token is part of a character, the bytes are exact."""
    best = [_candidate(token, logprob, language) for token, logprob in entry.top[:top]]
    return TokenLogprobOut(language.token_text(entry.token), entry.logprob, list(language.token_bytes(entry.token)), best)


def prompt_logprobs(entries: list[TokenLogprob], prompt_length: int, language: Language) -> msgspec.Raw:
    """One entry a prompt token, null for the first ones, which the engine has nothing to say of."""
    known = [token_logprob(entry, language, len(entry.top)) for entry in entries]
    return encode_slices([*[None] * (prompt_length - len(known)), *known])


def weight(entries: list[TokenLogprob]) -> int:
    """Candidates to be shown: what rendering them costs."""
    return sum(len(entry.top) + 1 for entry in entries)


def _candidate(token: int, logprob: float, language: Language) -> TopLogprob:
    return TopLogprob(language.token_text(token), logprob, list(language.token_bytes(token)))
