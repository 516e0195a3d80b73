"""From the sampling fields of a body to frozen sampling parameters, with the checks that need more than one field."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import NamedTuple

from headrace.engine.sampling_params import GrammarSpec, SamplingParams
from headrace.errors import HeadraceError
from headrace.server.protocol import limits
from headrace.server.protocol.common import SamplingBody, SpeculationWish


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the endpoints work out for themselves: lengths, choices, logprobs, and the grammar of a format or tool."""

    max_tokens: int
    choices: int = 1
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: GrammarSpec | None = None


def sampling_params(body: SamplingBody, wanted: Wanted, vocab: int, seed: int | None = None) -> SamplingParams:
    """The engine's parameters of one prompt. ``seed``: drawn for this prompt when the body has none.

    Raises ``invalid_value`` for bias or stop tokens outside the vocabulary and ``min_tokens`` above the limit.
    """
    min_tokens = body.min_tokens or 0
    if min_tokens > wanted.max_tokens:
        raise HeadraceError("invalid_value", f"'min_tokens' is above the {wanted.max_tokens} tokens wanted.", param="min_tokens")
    for place, token in enumerate(body.stop_token_ids or ()):
        if token >= vocab:
            param = f"stop_token_ids[{place}]"
            raise HeadraceError("invalid_value", f"'{param}' must be below {vocab:,}.", param=param)
    return SamplingParams(
        max_tokens=wanted.max_tokens,
        min_tokens=min_tokens,
        temperature=_or(body.temperature, 1.0),
        top_k=body.top_k or 0,
        top_p=_or(body.top_p, 1.0),
        min_p=body.min_p or 0.0,
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_bias(body.logit_bias, vocab),
        seed=body.seed if body.seed is not None else seed if seed is not None else new_seed(),
        n=wanted.choices,
        top_logprobs=wanted.top_logprobs,
        prompt_logprobs=wanted.prompt_logprobs,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        grammar=wanted.grammar,
    )


def new_seed() -> int:
    """A seed for a request that brought none; reported in the answer's headers, so that the answer can be had again."""
    return secrets.randbelow(limits.MAX_SEED)


def stop_strings(body: SamplingBody) -> tuple[str, ...]:
    """The stop strings as a tuple."""
    if body.stop is None:
        return ()
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)


def most_drafted(body: SamplingBody) -> int | None:
    """How many tokens a step may verify for this request; ``None``: as many as pay."""
    wish = body.speculation
    return 0 if wish == "off" else wish.max_tokens if isinstance(wish, SpeculationWish) else None


class Constraint(NamedTuple):
    """A grammar and the field it came from."""

    grammar: GrammarSpec | None
    param: str | None


def extension_grammar(body: SamplingBody) -> Constraint:
    """The constraint of ``regex`` or ``choice``; only one of them may be set."""
    if body.regex is not None and body.choice is not None:
        raise HeadraceError("invalid_value", "'choice' can't be combined with 'regex'.", param="choice")
    if body.regex is not None:
        return Constraint(GrammarSpec("regex", body.regex), "regex")
    if body.choice is not None:
        return Constraint(GrammarSpec("choice", json.dumps(body.choice)), "choice")
    return Constraint(None, None)


def check_stream_options(body: SamplingBody) -> None:
    """Raise when stream options come without a stream, or counts in every event without counts at all."""
    options = body.stream_options
    if options is None:
        return
    if not body.stream:
        raise HeadraceError("invalid_value", "'stream_options' needs 'stream': true.", param="stream_options")
    if options.continuous_usage_stats and not options.include_usage:
        param = "stream_options.continuous_usage_stats"
        raise HeadraceError("invalid_value", f"'{param}' needs 'include_usage': true.", param=param)


def output_room(prompt: int, wanted: int | None, context: int, param: str) -> int:
    """Tokens that may be generated: what is wanted, or everything that fits when nothing is.

    Raises ``context_length_exceeded`` when prompt and wanted output don't fit.
    """
    room = context - prompt
    if room < 0 or (room == 0 and wanted != 0):
        message = f"The prompt has {prompt:,} tokens; the model's context holds {context:,}, prompt and output together."
        raise HeadraceError("context_length_exceeded", message, param=param)
    if wanted is not None and wanted > room:
        message = f"The prompt has {prompt:,} tokens and {wanted:,} more are wanted; the model's context holds {context:,}."
        raise HeadraceError("context_length_exceeded", message, param=param)
    return room if wanted is None else wanted


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _bias(bias: dict[str, float] | None, vocab: int) -> dict[int, float]:
    if not bias:
        return {}
    if len(bias) > limits.MAX_LOGIT_BIAS:
        raise HeadraceError("invalid_value", f"'logit_bias' has more than {limits.MAX_LOGIT_BIAS} entries.", param="logit_bias")
    found: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 9 and int(key) < vocab):
            raise HeadraceError("invalid_value", f"The keys of 'logit_bias' are token ids below {vocab:,}.", param="logit_bias")
        found[int(key)] = value
    return found
