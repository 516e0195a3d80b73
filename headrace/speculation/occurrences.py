"""Where the last tokens of a sequence stood before: the longest match among the newest few, by chains of hashed grams.

This is the match finder of the LZ77 family: a table from a hash of three tokens to the newest place behind them, and from each
place to the one before with the same hash. It finds what a suffix automaton would, up to the bound on places looked at, in 16
bytes a token instead of some hundreds, and a token is entered in half a microsecond.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

GRAM = 3
LONGEST = 32  # matches are not measured beyond
_PLACES = 8  # looked at for one match
_MIX = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_FIRST_BITS = 8


class Match(NamedTuple):
    """The ``length`` tokens before ``place`` are the last ones of the sequence that was asked about."""

    place: int
    length: int


class Occurrences:
    """An index over one list of tokens that grows at its end. Places count from 1: place *p* is behind ``tokens[p - 1]``."""

    __slots__ = ("_before", "_bits", "_newest", "tokens")

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self._bits = _FIRST_BITS
        self._newest = array("i", bytes(4 << self._bits))
        self._before = array("i", (0,))

    def catch_up(self) -> None:
        """Enter what has come since the last call."""
        tokens, before, newest = self.tokens, self._before, self._newest
        if len(tokens) >> self._bits:
            self._widen(len(tokens))
            before, newest = self._before, self._newest
        shift, (first, second, third) = 32 - self._bits, _MIX
        for place in range(len(before), len(tokens) + 1):
            if place < GRAM:
                before.append(0)
                continue
            mixed = tokens[place - 3] * first + tokens[place - 2] * second + tokens[place - 1] * third
            slot = (mixed & 0xFFFFFFFF) >> shift
            before.append(newest[slot])
            newest[slot] = place

    def longest(self, tail: Sequence[int]) -> Match | None:
        """The longest match of the end of ``tail``; of equally long ones the newest. Not the end of this list itself."""
        end = len(tail)
        if end < GRAM:
            return None
        first, second, third = _MIX
        mixed = tail[end - 3] * first + tail[end - 2] * second + tail[end - 1] * third
        place = self._newest[(mixed & 0xFFFFFFFF) >> (32 - self._bits)]
        best, best_length = 0, GRAM - 1
        for _ in range(_PLACES):
            if place == len(self.tokens):
                place = self._before[place]
            if not place:
                break
            length = self.matched(tail, place)
            if length > best_length:
                best, best_length = place, length
                if length == LONGEST:
                    break
            place = self._before[place]
        return Match(best, best_length) if best else None

    def matched(self, tail: Sequence[int], place: int) -> int:
        """How many of the last tokens of ``tail`` stand before ``place``, up to :data:`LONGEST`."""
        tokens, end = self.tokens, len(tail)
        most = min(LONGEST, place, end)
        length = 0
        while length < most and tokens[place - 1 - length] == tail[end - 1 - length]:
            length += 1
        return length

    def _widen(self, tokens: int) -> None:
        """A table of twice as many slots as there are tokens; everything is entered anew."""
        self._bits = tokens.bit_length() + 1
        self._newest = array("i", bytes(4 << self._bits))
        self._before = array("i", (0,))
