"""A request as a message and back: what is captured here lives on elsewhere with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headrace.engine.relocation_wire import ChoiceState, RequestState
from headrace.engine.request import Choice, Limits, LiveRequest, make_choices, make_request


def capture(request: LiveRequest, now: float, numbers: Callable[[Sequence[int]], list[int]]) -> RequestState:
    """The state of a live request. ``numbers`` turns a page list into the numbers under which the pages were sent."""
    forked = {id(fork) for choice in request.open.values() for fork in choice.item.forks}
    open_ = [_capture_open(choice, numbers, forked=id(choice.item) in forked) for choice in request.open.values()]
    ended = [_capture_ended(choice) for choice in request.ended]
    return RequestState(
        request.submit,
        sorted([*open_, *ended], key=lambda choice: choice.index),
        now - request.arrival,
        None if request.started is None else request.started - request.arrival,
        request.cached_tokens,
        request.first_sent,
        [] if request.first_sent else list(request.prompt_logprobs),
    )


def _capture_open(choice: Choice, numbers: Callable[[Sequence[int]], list[int]], *, forked: bool) -> ChoiceState:
    item = choice.item
    return ChoiceState(
        choice.index,
        [] if forked else item.tokens[item.prompt_length :],
        item.computed, numbers(item.pages), item.scored, item.charged, forked, None, None,
        choice.logprob_sum, choice.logprob_count, choice.held, choice.held_logprobs, choice.drafted, choice.accepted,
        None if choice.pooled is None else choice.pooled.tobytes(), choice.pooled_rows,
    )  # fmt: skip


def _capture_ended(choice: Choice) -> ChoiceState:
    return ChoiceState(
        choice.index, finish=choice.finish, stop_token=choice.stop_token,
        logprob_sum=choice.logprob_sum, logprob_count=choice.logprob_count, held=choice.held, held_logprobs=choice.held_logprobs,
        drafted=choice.drafted, accepted=choice.accepted,
    )  # fmt: skip


def revive(state: RequestState, first_item_id: int, now: float, limits: Limits) -> tuple[LiveRequest, list[Choice]]:
    """The request and its open choices, whose items hold no pages yet.

    Items of choices that wait for a common prompt are the ``forks`` of the first open one.
    """
    request = make_request(state.submit, now - state.elapsed, limits)
    request.started = None if state.waited is None else request.arrival + state.waited
    request.cached_tokens, request.first_sent = state.cached_tokens, state.said
    request.prompt_logprobs = list(state.prompt_logprobs)
    by_index = {choice.index: choice for choice in make_choices(request, first_item_id, limits)}
    request.open.clear()
    choices: list[Choice] = []
    for known in state.choices:
        choice = by_index[known.index]
        choice.logprob_sum, choice.logprob_count = known.logprob_sum, known.logprob_count
        choice.held, choice.held_logprobs = list(known.held), list(known.held_logprobs)
        choice.drafted, choice.accepted = known.drafted, known.accepted
        if known.finish is not None:
            choice.finish, choice.stop_token = known.finish, known.stop_token
            request.ended.append(choice)
            continue
        request.open[known.index] = choice
        choices.append(choice)
        _revive_item(choice, known, state)
    leader = next((choice for choice in choices if not _is_forked(state, choice.index)), None)
    if leader is not None:
        leader.item.forks = [choice.item for choice in choices if _is_forked(state, choice.index)]
    return request, choices


def _revive_item(choice: Choice, known: ChoiceState, state: RequestState) -> None:
    item = choice.item
    item.tokens = [*state.submit.prompt, *known.tokens]
    item.scored, item.charged = known.scored, known.charged
    if state.said or known.tokens:
        item.score_from = None  # the prompt's logprobs are known
    if choice.history is not None:
        choice.history[item.prompt_length : len(item.tokens)] = known.tokens
    if known.pooled is not None:
        choice.pooled = np.frombuffer(known.pooled, np.float64).copy()
        choice.pooled_rows = known.pooled_rows


def _is_forked(state: RequestState, index: int) -> bool:
    return any(choice.index == index and choice.forked for choice in state.choices)
