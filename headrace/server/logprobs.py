"""Logprobs with text and bytes, as chat answers show them."""

from __future__ import annotations

from typing import Any

from headrace.engine.wire import TokenLogprob
from headrace.server.language import Language
from headrace.server.protocol.chat import ChatLogprobs, TokenLogprobOut, TopLogprob


def chat_logprobs(entries: list[TokenLogprob], language: Language, top: int) -> ChatLogprobs:
    """Entries of a choice or chunk with their ``top`` best candidates."""
    return ChatLogprobs([token_logprob(entry, language, top) for entry in entries])


def token_logprob(entry: TokenLogprob, language: Language, top: int) -> TokenLogprobOut:
    """One entry; the text has U+FFFD where a token is part of a character, the bytes are exact."""
    best = [_candidate(token, logprob, language) for token, logprob in entry.top[:top]]
    return TokenLogprobOut(language.token_text(entry.token), entry.logprob, list(language.token_bytes(entry.token)), best)


def prompt_logprobs_out(entries: list[TokenLogprob | None], language: Language) -> list[Any]:
    """One entry a prompt token, null for the first, which follows nothing."""
    return [None if entry is None else token_logprob(entry, language, len(entry.top)) for entry in entries]


def _candidate(token: int, logprob: float, language: Language) -> TopLogprob:
    return TopLogprob(language.token_text(token), logprob, list(language.token_bytes(token)))
