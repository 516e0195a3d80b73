"""Requests while they live: what was asked, its choices, and the sampling record that each choice starts from."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import MOST_ADAPTERS, MOST_SCALE, FinishReason, Submit, TokenLogprob
from headrace.errors import HeadraceError
from headrace.kernels.interface import Float32, Int32
from headrace.kernels.sampler import neutral_request
from headrace.models.config import Pooling
from headrace.scheduling.item import MOST_PRIORITY, Item, ItemKind
from headrace.scheduling.shares import MOST_WEIGHT
from headrace.speculation.drafting import Drafting
from headrace.speculation.proposer import MOST_DRAFTED

GREEDY_BELOW = np.float32(1e-6)  # temperature, as the native sampler sees it: in single precision
MASK_WINDOW = 8  # tokens over which the cost of a grammar's masks is watched


class Matcher(Protocol):
    """Follows one choice through a grammar (:class:`headrace.text.grammar.Matcher`)."""

    def mask(self, out: npt.NDArray[np.uint32]) -> None:
        """Set bit *t* of ``out`` [ceil(vocab / 32)] for each token *t* allowed next, clear the others. Raises HeadraceError."""

    def advance(self, token: int) -> bool:
        """Take a token; False when the grammar does not allow it."""

    def is_complete(self) -> bool:
        """True when nothing but the end may follow."""

    def fork(self) -> Matcher:
        """An independent matcher in the same state."""

    def allowed(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, one after the other, the grammar allows next, none behind its end."""

    def forced(self) -> Sequence[int]:
        """Tokens that spell what must come next, if anything must."""


class Grammar(Protocol):
    """A compiled grammar, good for any number of choices."""

    def matcher(self) -> Matcher:
        """A fresh matcher at the start."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model allows. ``eos_ids`` end a choice; ``seed`` is mixed into every random stream; ``pooling`` makes embeddings."""

    vocab: int
    context_length: int
    eos_ids: tuple[int, ...]
    seed: int = 0
    pooling: Pooling = "mean"


def _recent_masks() -> deque[float]:
    return deque(maxlen=MASK_WINDOW)


@dataclass(slots=True, eq=False)
class Choice:
    """One answer of a request and the item that computes it.

    ``record``: the choice's sampling record as bytes; only counters change from step to step. ``tabled``: penalties,
    biases or a grammar come with it. ``scored``: each token's logprob is wanted. ``history`` holds prompt
    and output when penalties need them. ``mask_seconds``: what the last masks cost. ``held``: outputs kept back until best_of
    is decided, and with them how many tokens were ``drafted`` and ``accepted``. ``drafting``: what proposers know of it.
    ``pool_from``: the first position whose row is part of an embedding.
    """

    request: LiveRequest
    index: int
    item: Item
    record: bytes
    plain: bool
    tabled: bool
    scored: bool
    min_tokens: int
    matcher: Matcher | None = None
    mask_seconds: deque[float] = field(default_factory=_recent_masks)
    history: Int32 | None = None
    logprob_sum: float = 0.0
    logprob_count: int = 0
    held: list[int] = field(default_factory=list)
    held_logprobs: list[TokenLogprob] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    drafting: Drafting | None = None
    finish: FinishReason | None = None
    stop_token: int | None = None
    pooled: npt.NDArray[np.float64] | None = None
    pooled_rows: int = 0
    pool_from: int = 0


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request from submission to the end of its last choice.

    ``ranked``: best_of is larger than n, so choices are kept back and the best by mean logprob are sent at the end.
    ``bans``: bias arrays that also forbid the stops, used until ``min_tokens`` have been sampled.
    """

    submit: Submit
    arrival: float
    stops: frozenset[int]
    bias: tuple[Int32, Float32]
    bans: tuple[Int32, Float32]
    ranked: bool
    open: dict[int, Choice] = field(default_factory=dict)
    ended: list[Choice] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    started: float | None = None
    cached_tokens: int = 0
    first_sent: bool = False

    @property
    def params(self) -> SamplingParams:
        """What was asked of sampling."""
        return self.submit.params

    @property
    def copies(self) -> int:
        """Choices beside the first that only repeat how it ended."""
        return self.params.n - 1 if self.params.max_tokens == 0 and not self.submit.embed else 0

    @property
    def deadline(self) -> float | None:
        """The moment on the engine's clock when time is up."""
        return None if self.submit.deadline is None else self.arrival + self.submit.deadline


def check_submit(submit: Submit, limits: Limits) -> None:
    """Refuse what this model can't run. Raises HeadraceError naming the field."""
    params, length = submit.params, len(submit.prompt)
    if length == 0:
        raise HeadraceError("invalid_value", "the prompt is empty", param="prompt")
    wanted = 0 if submit.embed else params.max_tokens
    if length + wanted > limits.context_length:
        message = f"{length} prompt tokens and max_tokens {wanted} are over the context of {limits.context_length} tokens"
        raise HeadraceError("context_length_exceeded", message, param="prompt" if length > limits.context_length else "max_tokens")
    named = {"prompt": submit.prompt, "stop_token_ids": params.stop_token_ids, "logit_bias": params.logit_bias}
    for name, tokens in (*named.items(), ("prediction", submit.prediction)):
        if tokens and not (min(tokens) >= 0 and max(tokens) < limits.vocab):
            raise HeadraceError("invalid_value", f"{name} has a token id outside 0 … {limits.vocab - 1}", param=name)
    if params.prompt_logprobs_from >= length and params.prompt_logprobs is not None:
        message = f"prompt_logprobs_from {params.prompt_logprobs_from} is beyond a prompt of {length} tokens"
        raise HeadraceError("invalid_value", message, param="prompt_logprobs_from")
    if params.best_of is not None and params.best_of < params.n:
        raise HeadraceError("invalid_value", f"best_of {params.best_of} is less than n {params.n}", param="best_of")
    if params.min_tokens > params.max_tokens:
        raise HeadraceError(
            "invalid_value", f"min_tokens {params.min_tokens} is over max_tokens {params.max_tokens}", param="min_tokens"
        )
    if not -MOST_PRIORITY <= submit.priority <= MOST_PRIORITY:
        message = f"priority must be from -{MOST_PRIORITY} to {MOST_PRIORITY}, not {submit.priority}"
        raise HeadraceError("invalid_value", message, param="priority")
    if not 1 <= submit.weight <= MOST_WEIGHT:
        raise HeadraceError("invalid_value", f"weight must be from 1 to {MOST_WEIGHT}, not {submit.weight}", param="weight")
    _check_uses(submit)
    _check_speculation(submit, limits)
    if submit.deadline is not None and not submit.deadline > 0:
        raise HeadraceError("invalid_value", "a deadline is a positive number of seconds", param="deadline")


def _check_speculation(submit: Submit, limits: Limits) -> None:
    if submit.speculation is not None and not 0 <= submit.speculation <= MOST_DRAFTED:
        message = f"at most {MOST_DRAFTED} tokens are drafted for a step (0: none), not {submit.speculation}"
        raise HeadraceError("invalid_value", message, param="speculation")
    if len(submit.prediction) > limits.context_length:
        message = f"the prediction has {len(submit.prediction)} tokens, more than the context of {limits.context_length}"
        raise HeadraceError("invalid_value", message, param="prediction")


def _check_uses(submit: Submit) -> None:
    if len(submit.adapters) > MOST_ADAPTERS:
        message = f"a request has at most {MOST_ADAPTERS} adapters, not {len(submit.adapters)}"
        raise HeadraceError("invalid_value", message, param="adapters")
    if len({use.generation for use in submit.adapters}) < len(submit.adapters):
        raise HeadraceError(
            "invalid_value", "an adapter is named twice; give it once, with the sum of its scales", param="adapters"
        )
    if not all(abs(use.scale) <= MOST_SCALE for use in submit.adapters):  # false for what is not a number, too
        raise HeadraceError("invalid_value", f"an adapter's scale is from -{MOST_SCALE} to {MOST_SCALE}", param="adapters")


def make_request(submit: Submit, arrival: float, limits: Limits) -> LiveRequest:
    """Turn a checked message into a live request without choices."""
    params = submit.params
    stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset(limits.eos_ids))
    biased = sorted(params.logit_bias.items())
    tokens = np.array([token for token, _ in biased], np.int32)
    values = np.array([value for _, value in biased], np.float32)
    forbidden = np.array(sorted(stops), np.int32)
    bans = (np.concatenate((tokens, forbidden)), np.concatenate((values, np.full(len(forbidden), -np.inf, np.float32))))
    return LiveRequest(
        submit, arrival, stops, (tokens, values), bans, (params.best_of or params.n) > params.n and params.max_tokens > 0
    )


def make_choices(request: LiveRequest, first_item_id: int, limits: Limits) -> list[Choice]:
    """The request's choices with fresh items; the first one leads, the others fork from its prompt.

    Without output there is one item whatever n says: nothing tells choices apart (see :meth:`LiveRequest.copies`).
    """
    submit, params = request.submit, request.params
    count = 1 if submit.embed or params.max_tokens == 0 else (params.best_of or params.n)
    choices = []
    for index in range(count):
        item = Item(
            item_id=first_item_id + index,
            kind=ItemKind.EMBED if submit.embed else ItemKind.GENERATE,
            tokens=list(submit.prompt) if index == 0 else submit.prompt,
            prompt_length=len(submit.prompt),
            max_tokens=0 if submit.embed else params.max_tokens,
            arrival=request.arrival,
            deadline=request.deadline,
            priority=submit.priority,
            score_from=_score_from(submit),
            tenant=submit.tenant,
            share=submit.share,
            weight=submit.weight,
            adapters=tuple((use.generation, use.scale) for use in submit.adapters),
        )
        record, plain, tabled = _record(request, index, limits), _is_plain(request), _is_modified(params)
        choice = Choice(request, index, item, record, plain, tabled, _wants_logprobs(request), params.min_tokens)
        choice.pool_from = len(submit.prompt) - 1 if limits.pooling == "last" else 0
        if _penalised(params):
            choice.history = np.empty(len(submit.prompt) + params.max_tokens, np.int32)
            choice.history[: len(submit.prompt)] = submit.prompt
        choices.append(choice)
        request.open[index] = choice
    return choices


def _score_from(submit: Submit) -> int | None:
    """The row before the first token whose logprob is wanted says it."""
    params = submit.params
    return None if params.prompt_logprobs is None or submit.embed else max(0, params.prompt_logprobs_from - 1)


def _penalised(params: SamplingParams) -> bool:
    return (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)


def _is_plain(request: LiveRequest) -> bool:
    """True when the arg-max of the raw logits is all that is wanted (beyond min_tokens)."""
    greedy = bool(np.float32(request.params.temperature) < GREEDY_BELOW)
    return greedy and not _wants_logprobs(request) and not _is_modified(request.params)


def _wants_logprobs(request: LiveRequest) -> bool:
    return request.params.top_logprobs is not None or request.ranked


def _is_modified(params: SamplingParams) -> bool:
    return _penalised(params) or bool(params.logit_bias) or params.grammar is not None


def _record(request: LiveRequest, index: int, limits: Limits) -> bytes:
    params = request.params
    record = neutral_request()
    record["seed"], record["base"], record["choice"] = params.seed, limits.seed, index
    record["temperature"], record["top_p"], record["min_p"] = params.temperature, params.top_p, params.min_p
    record["repetition"], record["presence"] = params.repetition_penalty, params.presence_penalty
    record["frequency"], record["top_k"] = params.frequency_penalty, params.top_k
    wanted = params.top_logprobs
    record["top_count"] = wanted if wanted is not None else (0 if request.ranked else -1)
    return record.tobytes()
