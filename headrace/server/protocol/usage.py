"""Token counts of an answer."""

from __future__ import annotations

import msgspec


class PromptDetails(msgspec.Struct, frozen=True):
    """Prompt tokens whose pages were found instead of computed."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a call: the prompt counts once, completions together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails

    @classmethod
    def of(cls, prompt: int, completion: int, cached: int) -> Usage:
        """Make the counts consistent."""
        return cls(prompt, completion, prompt + completion, PromptDetails(cached))
