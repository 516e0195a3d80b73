"""What drafted tokens are worth: how often those of one kind turned out right, learnt from every step.

Counted is the chance of a token given that all before it were right, at each position up to the first that was wrong, and no
further: positions behind it say nothing. So the chances are unbiased whatever lengths were verified, other than the share of
accepted tokens in drafted ones, which falls with the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_FORGETTING = 0.997  # half of what is known is from the last 230 tokens of a kind
_PRIOR = 12.0  # tokens that the first guess counts for
_OWN_FORGETTING = 0.95
_OWN_PRIOR = 0.5  # wrong tokens foreseen before a stream's own record counts as much as everybody's
_DOUBT = 0.5  # wrong tokens that are held against a stream of which nothing is known yet
_DOUBT_LEFT = 0.7  # of it, behind each right one
_SUREST = 0.995
_APART = 3.0  # log-odds, before anything was seen, that streams differ more than by luck
_APART_FORGETTING = 0.995
_APART_MOST = 3.0  # either way, so that a change is believed within some tokens


class Acceptance:
    """One proposer's record. Grades are the proposer's own kinds of tokens, from the least to the most certain.

    It also learns what a stream's own record is good for: where all fare alike, a stream's last few tokens tell its luck and no
    more, and lengths that follow them are too short and too long in turns. Both forecasts of each token are weighed by how well
    they have foretold the ones before (log-likelihood, as two experts).
    """

    __slots__ = ("_apart", "_counts", "_priors", "_rights", "_table")

    def __init__(self, priors: Sequence[float]) -> None:
        """``priors``: for each grade, the chance of being right before anything was seen."""
        self._priors = tuple(priors)
        self._counts = [0.0] * len(self._priors)
        self._rights = [0.0] * len(self._priors)
        self._table = [min(_SUREST, prior) for prior in self._priors]
        self._apart = _APART

    def chance(self, grade: int) -> float:
        """That a token of this grade is right, all before it being so."""
        return self._table[grade]

    @property
    def usual(self) -> float:
        """The chance of a token of whatever grade, as they came lately."""
        seen = sum(self._counts) + _PRIOR
        middle = sum(self._priors) / len(self._priors)
        return (sum(self._rights) + _PRIOR * middle) / seen

    def own_share(self, own: OwnRecord) -> float:
        """What a stream's chance of being wrong is multiplied by, as far as its own record is believed."""
        return 1.0 + (own.factor - 1.0) / (1.0 + math.exp(-self._apart))

    def compare(self, grade: int, own: OwnRecord, *, right: bool) -> None:
        """A token of this grade was right or wrong: did the stream's own record, as it was before, foretell it better?"""
        usual = min(_SUREST, 1.0 - self._table[grade])
        wrong = min(_SUREST, max(1.0 - _SUREST, own.factor * usual))
        better = math.log((1.0 - wrong) / (1.0 - usual)) if right else math.log(wrong / usual)
        self._apart = max(-_APART_MOST, min(_APART_MOST, _APART_FORGETTING * self._apart + better))

    def observe(self, grade: int, *, right: bool) -> None:
        """A token of this grade, all before it being right, was right or wrong."""
        counts = self._counts[grade] = _FORGETTING * self._counts[grade] + 1.0
        rights = self._rights[grade] = _FORGETTING * self._rights[grade] + right
        self._table[grade] = min(_SUREST, (rights + _PRIOR * self._priors[grade]) / (counts + _PRIOR))


class OwnRecord:
    """How one stream fares with one proposer beside all others: wrong tokens over those that were foreseen.

    A stream begins in doubt. What others did says little of whether this one repeats itself, and guesses that are not verified
    are observed all the same: text that repeats itself is believed a step later, and a conversation pays for no wrong guess first.
    """

    __slots__ = ("_doubt", "_foreseen", "_wrong")

    def __init__(self) -> None:
        self._doubt = _DOUBT
        self._wrong = 0.0
        self._foreseen = 0.0

    @property
    def factor(self) -> float:
        """What the chance of being wrong is multiplied by."""
        return (self._wrong + self._doubt + _OWN_PRIOR) / (self._foreseen + _OWN_PRIOR)

    def observe(self, foreseen: float, *, right: bool) -> None:
        """A token, foreseen right with that chance, was right or wrong."""
        self._wrong = _OWN_FORGETTING * self._wrong + (not right)
        self._foreseen = _OWN_FORGETTING * self._foreseen + (1.0 - foreseen)
        if right:
            self._doubt *= _DOUBT_LEFT


def survival(acceptance: Acceptance, own: OwnRecord, grades: Sequence[int], least: float) -> list[float]:
    """For each length, the chance that so many tokens of these grades are all right; cut where it falls below ``least``."""
    chances: list[float] = []
    chance, factor = 1.0, acceptance.own_share(own)
    for grade in grades:
        chance *= 1.0 - min(1.0, factor * (1.0 - acceptance.chance(grade)))
        if chance < least:
            break
        chances.append(chance)
    return chances
