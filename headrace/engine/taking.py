"""What a choice takes of a step: one sampled token, or a run of them whose drafts were right; and whether it ends with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from headrace.engine.choosing import Chosen
from headrace.engine.request import Choice, Limits
from headrace.engine.wire import FinishReason, TokenLogprob

logger = logging.getLogger("headrace.engine.taking")


@dataclass(slots=True)
class Taken:
    """Tokens for whoever asked. ``finish``: why the choice ends with them.

    ``drafted``: tokens that the step verified for the choice, ``accepted``: those of them that are among ``tokens``.
    ``row``: the kept row that the last one comes from.
    """

    tokens: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish: FinishReason | None = None
    drafted: int = 0
    accepted: int = 0
    row: int = -1


def runs(chosen: Sequence[Chosen], drafted: Mapping[int, Sequence[int]]) -> Iterator[list[Chosen]]:
    """What each choice was given: one token, or those up to the first that its draft did not foretell.

    That each row was sampled with its own position's random number, history and mask makes verification so simple: the
    token behind a right draft is the one that would have been sampled without any, whatever the temperature.
    """
    place = 0
    while place < len(chosen):
        draft = drafted.get(chosen[place].choice.item.item_id, ())
        right = 0
        while right < len(draft) and chosen[place + right].failed is None and chosen[place + right].token == draft[right]:
            right += 1
        yield list(chosen[place : place + right + 1])
        place += len(draft) + 1


class Given:
    """What all choices take of a step. ``sampled`` and ``accepted`` are what the scheduler is told."""

    __slots__ = ("_drafted", "_limits", "accepted", "sampled", "taken")

    def __init__(self, drafted: Mapping[int, Sequence[int]], limits: Limits) -> None:
        self._drafted = drafted
        self._limits = limits
        self.sampled: dict[int, int] = {}
        self.accepted: dict[int, list[int]] = {}
        self.taken: list[tuple[Choice, Taken]] = []

    def take(self, run: Sequence[Chosen]) -> None:
        """Give a choice its tokens until it ends. Call before they are committed."""
        choice, item_id = run[0].choice, run[0].choice.item.item_id
        taken = Taken([])
        sampled = []
        for chosen in run:
            sampled.append(chosen.token if chosen.failed is None else 0)
            if not _take_one(choice, chosen, taken, self._limits):
                break
        self.sampled[item_id] = sampled[0]
        if item_id in self._drafted:
            self.accepted[item_id] = sampled[1:]
            taken.drafted = len(self._drafted[item_id])
            taken.accepted = min(len(taken.tokens), len(run) - 1)
        self.taken.append((choice, taken))


def _take_one(choice: Choice, chosen: Chosen, taken: Taken, limits: Limits) -> bool:
    """One token; False when it, or what there is instead of it, ends the choice."""
    _, token, logprob, failed, taken.row = chosen
    request = choice.request
    if failed is not None:
        stopped = failed == "nothing_allowed" and choice.matcher is not None
        if not stopped:
            logger.error("request %d choice %d: no token, %s", request.submit.request_id, choice.index, failed)
        taken.finish = "stop" if stopped else "error"
        return False
    if logprob is not None:
        choice.logprob_sum += logprob.logprob
        choice.logprob_count += 1
    if token in request.stops or (choice.matcher is not None and token in limits.eos_ids):
        choice.stop_token = token
        taken.finish = "stop"
        return False
    taken.tokens.append(token)
    if logprob is not None:
        taken.logprobs = [*(taken.logprobs or ()), logprob]
    taken.finish = _reason_after(choice, token, choice.item.generated + len(taken.tokens))
    return taken.finish is None


def _reason_after(choice: Choice, token: int, generated: int) -> FinishReason | None:
    """Why a choice ends with this ordinary token, its ``generated``-th, if it does."""
    item = choice.item
    if choice.history is not None:
        choice.history[item.prompt_length + generated - 1] = token
    if choice.matcher is not None:
        try:
            if not choice.matcher.advance(token):
                return "error"
            if choice.matcher.is_complete():
                return "stop"
        except Exception:  # a fault in one grammar ends one choice
            logger.exception("request %d choice %d: the grammar has failed", choice.request.submit.request_id, choice.index)
            return "error"
    return "length" if generated >= item.max_tokens else None
