"""Token counts of an answer."""

from __future__ import annotations

import msgspec


class PromptDetails(msgspec.Struct, frozen=True):
    """Prompt tokens whose pages were found instead of computed."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    """Tokens that were guessed and verified: those that the answer has, and those that were wrong."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a call: the prompt counts once, completions together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails

    @classmethod
    def of(cls, prompt: int, completion: int, cached: int, drafted: int = 0, accepted: int = 0) -> Usage:
        """Make the counts consistent."""
        details = CompletionDetails(accepted, drafted - accepted)
        return cls(prompt, completion, prompt + completion, PromptDetails(cached), details)
