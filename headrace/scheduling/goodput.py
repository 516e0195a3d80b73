"""How many drafted tokens of each stream are worth verifying in the next step: those that raise the tokens per second.

The measure is SmartSpec's goodput ("Optimizing Speculative Decoding for Serving LLMs Using Goodput"): tokens that a step is
expected to emit, over the time that it is expected to take. Changed here: every stream has a length of its own, filled
token by token in order of the chance of being accepted, and rows of prompts in the same step count with what they are worth, so
that a draft's row and a prompt's row are weighed at one price. Nothing is switched on or off: where rows cost nearly nothing,
nearly everything is verified, and where they cost as much as the tokens bring, nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from headrace.scheduling.cost import Cost

WORTH = 1.03
"""What a step with drafts must bring over one without: predictions of time are about as good as that."""


class Drafted(NamedTuple):
    """Tokens proposed behind a stream's last one. ``survival[j]``: the chance that the first j + 1 of them are all right."""

    tokens: Sequence[int]
    survival: Sequence[float]


NO_DRAFTS: Mapping[int, Drafted] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Margin:
    """A step before anything is drafted.

    ``load``: what Cost is asked about, prompts that will be added included. ``value``: the tokens that it brings; ``room``: rows
    that may be added. ``seconds``: how long it may take at most (``None``: no bound).
    """

    load: tuple[int, int, int, int]
    value: float
    room: int
    seconds: float | None = None


def choose_lengths(streams: Sequence[tuple[int, Sequence[float]]], margin: Margin, cost: Cost) -> list[int]:
    """Drafted tokens to verify of each stream: (position of its next row, survival by length).

    Cost is convex in rows and survival falls with length, so that the first row which does not pay ends the search.
    """
    lengths = [0] * len(streams)
    tokens, pairs, rows, adapters = margin.load
    value, seconds = margin.value, cost.predict(*margin.load)
    floor = value * (cost.predict(tokens + 1, pairs, rows + 1, adapters) - seconds) / seconds
    offers = [
        (-chance, stream, length)
        for stream, (_, survival) in enumerate(streams)
        for length, chance in enumerate(survival)
        if chance > floor
    ]
    offers.sort()
    plain = value / seconds
    best, paid = plain * WORTH, 0
    goodput = plain
    for taken, (chance, stream, length) in enumerate(offers[: max(0, margin.room)], 1):
        tokens, rows = tokens + 1, rows + 1
        pairs += streams[stream][0] + length + 2
        value -= chance
        seconds = cost.predict(tokens, pairs, rows, adapters)
        if value / seconds <= goodput or (margin.seconds is not None and seconds > margin.seconds):
            break
        goodput = value / seconds
        if goodput > best:
            best, paid = goodput, taken
    for _, stream, _ in offers[:paid]:
        lengths[stream] += 1
    return lengths


def least_survival(streams: int, pairs: int, cost: Cost) -> float:
    """The chance below which no drafted token pays in a step of so many streams that see so many keys in all."""
    seconds = cost.predict(streams, pairs, streams)
    return streams * (cost.predict(streams + 1, pairs + pairs // max(1, streams), streams + 1) - seconds) / seconds


class Offer(NamedTuple):
    """What a proposer that costs time would bring: up to ``most`` tokens for each of ``streams``, each right with ``chance`` if all
    before it are, for ``price`` seconds."""

    streams: int
    most: int
    chance: float
    price: float


def is_worth_asking(offer: Offer, margin: Margin, cost: Cost) -> bool:
    """Whether the offer would raise the goodput of a step."""
    tokens, pairs, rows, adapters = margin.load
    seconds = cost.predict(*margin.load)
    wanted = WORTH * margin.value / seconds
    value, survival = margin.value, 1.0
    for length in range(1, offer.most + 1):
        survival *= offer.chance
        value += offer.streams * survival
        tokens, rows, pairs = tokens + offer.streams, rows + offer.streams, pairs + offer.streams * pairs // tokens
        if value / (cost.predict(tokens, pairs, rows, adapters) + offer.price) > wanted:
            return True
        if survival < 1e-3 or length * offer.streams > margin.room:
            break
    return False
