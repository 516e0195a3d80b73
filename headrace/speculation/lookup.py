"""Proposers that only look things up: what followed the same tokens before."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.speculation.occurrences import GRAM, Match, Occurrences
from headrace.speculation.proposer import MOST_DRAFTED, Accepted, Ask, Proposal, Stream

GRADES: tuple[float, ...] = (0.30, 0.40, 0.50, 0.62, 0.74, 0.84, 0.92)
"""By the length of the match: 3, 4, 5 and 6, 7 to 10, 11 to 18, 19 to 31, 32 and more."""

_BY_LENGTH = (0,) * (GRAM + 1) + (1, 2, 2, 3, 3, 3, 3) + (4,) * 8 + (5,) * 13 + (6,)
END = -1
"""Stands between texts that have nothing to do with each other."""

_SETTLED = 16  # a match as long as this is followed without looking for a longer one


def grades_behind(length: int, count: int) -> list[int]:
    """Grades of ``count`` tokens behind a match: each one that is right makes it longer."""
    last = len(_BY_LENGTH) - 1
    return [_BY_LENGTH[min(last, length + offset)] for offset in range(count)]


class Follower:
    """One stream's place in one list of tokens that says the same."""

    __slots__ = ("_match", "occurrences")

    def __init__(self, occurrences: Occurrences, match: Match | None = None) -> None:
        self.occurrences = occurrences
        self._match = match

    def propose(self, stream: Stream, most: int, new: int) -> Proposal | None:
        """What followed the last tokens of ``stream``, of which ``new`` came since the last call."""
        occurrences = self.occurrences
        match = self._go_on(stream, new)
        if match is None or match.length < _SETTLED:
            other = occurrences.longest(stream.tokens)
            if other is not None and (match is None or other.length > match.length):
                match = other
        self._match = match
        if match is None:
            return None
        tokens = occurrences.tokens[match.place : match.place + most]
        if END in tokens:
            tokens = tokens[: tokens.index(END)]
        if not tokens:
            return None
        return Proposal(tokens, grades_behind(match.length, len(tokens)))

    def _go_on(self, stream: Stream, new: int) -> Match | None:
        """The match of before, if all that has come since stood behind it."""
        if self._match is None or new <= 0:
            return self._match if new == 0 else None
        place, known = self._match.place + new, self.occurrences.tokens
        if place > len(known) or (known is stream.tokens and place == len(known)):
            return None
        length = self.occurrences.matched(stream.tokens, place)
        return Match(place, length) if length >= min(place, GRAM) else None


class OwnRepeats:
    """Prompt lookup: what followed the same tokens earlier in the request itself."""

    name = "lookup"
    grades: tuple[float, ...] = GRADES
    light = True
    depth = MOST_DRAFTED

    def __init__(self) -> None:
        self._followers: dict[int, tuple[Follower, int]] = {}

    def serves(self, stream: Stream) -> bool:
        """Any."""
        return True

    def price(self, asks: Sequence[Ask]) -> float:
        """Nothing."""
        return 0.0

    def propose(self, asks: Sequence[Ask]) -> list[Proposal | None]:
        """Behind the longest match."""
        return [self._propose(*ask) for ask in asks]

    def accepted(self, news: Sequence[Accepted]) -> None:
        """Tokens are entered when somebody asks."""

    def ended(self, stream: Stream) -> None:
        """Forget it."""
        self._followers.pop(stream.stream_id, None)

    def _propose(self, stream: Stream, most: int) -> Proposal | None:
        follower, seen = self._followers.get(stream.stream_id, (None, 0))
        if follower is None:
            follower = Follower(Occurrences(stream.tokens))
        follower.occurrences.catch_up()
        length = len(stream.tokens)
        self._followers[stream.stream_id] = follower, length
        return follower.propose(stream, most, length - seen)
