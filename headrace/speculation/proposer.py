"""The interface of those who guess the next tokens of a stream. One engine has several; each step the best guess is verified.

A proposer never decides anything: how many of its tokens are verified follows from how often its tokens of each grade turned
out right (:mod:`headrace.scheduling.acceptance`) and from what rows cost (:mod:`headrace.scheduling.goodput`). Whatever it
proposes, the tokens that come out are those that would have come without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from headrace.scheduling.item import Root

MOST_DRAFTED = 32
"""Most tokens that are verified for one stream in one step."""


@dataclass(slots=True, eq=False)
class Stream:
    """One choice of a request, as proposers see it.

    ``stream_id`` is unique while the engine lives. ``tokens``: the prompt and all accepted tokens; the list only grows, one or
    more tokens a step, and belongs to the scheduler. ``tenant``: nobody else may learn from what this stream says. ``root``: who
    and with which adapters. ``prediction``: what the caller expects to get. ``forced``: asks the stream's grammar for the tokens
    that must come next (``None``: it has no grammar). ``record``: how its tokens are drawn (one of
    :data:`headrace.kernels.sampler.REQUEST_DTYPE`); empty: the likeliest is taken.
    """

    stream_id: int
    tokens: list[int]
    prompt_length: int
    tenant: str = ""
    root: Root = ""
    prediction: Sequence[int] = field(default=())
    forced: Callable[[], Sequence[int]] | None = None
    record: bytes = b""


class Ask(NamedTuple):
    """Up to ``most`` tokens (at least 1) are wanted behind the last one of ``stream.tokens``."""

    stream: Stream
    most: int


class Proposal(NamedTuple):
    """Guessed tokens, the likeliest path first.

    ``grades``: for each token, into which of its proposer's grades it falls; tokens of one grade are about equally likely to be
    right. ``parents``: for a tree, the index of the token that each one follows, −1 for the stream's last; always smaller than
    the token's own index. Empty: each token follows the one before.
    """

    tokens: Sequence[int]
    grades: Sequence[int]
    parents: Sequence[int] = ()

    @property
    def trunk(self) -> Proposal:
        """The path that takes the first branch everywhere, which is all of it when there are no others."""
        if not self.parents:
            return self
        path, last = [], -1
        for index, parent in enumerate(self.parents):
            if parent == last:
                path.append(index)
                last = index
        return Proposal([self.tokens[index] for index in path], [self.grades[index] for index in path])


class Accepted(NamedTuple):
    """What a step brought a stream: the last ``new`` of its tokens.

    ``row``: which of the rows that the chain has kept of this step (:meth:`ChainRunner.hidden`) the newest token was sampled from;
    the tokens before it came from the rows before it.
    """

    stream: Stream
    new: int
    row: int


class Proposer(Protocol):
    """Guesses tokens. All calls come from the engine's thread, between two executions of the model.

    ``grades``: for each grade, the chance that its tokens are right before anything was seen; from the least to the most certain.
    ``light``: it only looks things up, so that its price is never asked for and steps are not told to it. ``depth``: most tokens
    that it guesses for a stream at once.
    """

    name: str
    grades: tuple[float, ...]
    light: bool
    depth: int

    def serves(self, stream: Stream) -> bool:
        """Whether it may ever have something to say about this stream; asked once, when the stream starts."""

    def price(self, asks: Sequence[Ask]) -> float:
        """Seconds that :meth:`propose` is expected to take of the model's time; 0 for those that only look things up.

        Who has a price is asked only when the tokens are expected to be worth it, and now and then to find out.
        """

    def propose(self, asks: Sequence[Ask]) -> list[Proposal | None]:
        """A proposal, or ``None``, for each. Called before a step is planned, for streams whose newest token is all they lack.

        Tokens that were accepted since the last call are in ``stream.tokens``.
        """

    def accepted(self, news: Sequence[Accepted]) -> None:
        """A step has run and its tokens are committed. Called after each step for all streams that may be drafted for."""

    def ended(self, stream: Stream) -> None:
        """A stream is over: what is kept of it can go."""
