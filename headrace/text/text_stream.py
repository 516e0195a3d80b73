"""Incremental detokenisation: text leaves as soon as it is certain, whole characters only, stop strings never."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable
from typing import NamedTuple

from headrace.text.tokenizer import Tokenizer


class TokenPiece(NamedTuple):
    """One token's own bytes and the number of characters of text that were complete before it."""

    token: int
    data: bytes
    offset: int


class Delta(NamedTuple):
    """What a push releases.

    ``text`` is new text for the client. ``finished_by_stop`` is the stop string that ended the stream in this push;
    tokens behind it were not looked at, so ``pieces`` counts those that were used.
    """

    text: str
    finished_by_stop: str | None = None
    pieces: tuple[TokenPiece, ...] = ()


class TextStream:
    """The text of one choice, token by token.

    The joined deltas are exactly ``tokenizer.decode(all ids)``, cut at the stop string that is complete first (of two
    that end together, the longer one), however the ids were divided into pushes. ``include_stop`` keeps the stop string.
    ``keep``: special ids that are text here (a tool dialect's own).
    """

    __slots__ = (
        "_decoder",
        "_finished",
        "_firsts",
        "_held",
        "_include_stop",
        "_length",
        "_prefixes",
        "_skipped",
        "_stop",
        "_token_bytes",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...] = (),
        *,
        include_stop: bool = False,
        skip_special: bool = True,
        keep: Collection[int] = (),
    ) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids.difference(keep) if skip_special else frozenset[int]()
        self._stop = tuple(text for text in stop if text)
        self._include_stop = include_stop
        self._prefixes = frozenset(text[:length] for text in self._stop for length in range(1, len(text)))
        self._firsts = frozenset(text[0] for text in self._stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._length = 0
        self._finished = False

    @property
    def finished(self) -> bool:
        """True after a stop string or :meth:`finish`; nothing more will come."""
        return self._finished

    def push(self, token_ids: Iterable[int]) -> Delta:
        """Take tokens and release what is certain. After the end everything is ignored and the delta is empty."""
        released: list[str] = []
        pieces: list[TokenPiece] = []
        for token in token_ids:
            if self._finished:
                break
            data = self._token_bytes(token)
            pieces.append(TokenPiece(token, data, self._length))
            if token in self._skipped:
                continue
            text = self._decoder.decode(data)
            if not text:
                continue
            self._length += len(text)
            if not self._stop:
                released.append(text)
                continue
            hit = self._take(text, released)
            if hit is not None:
                return Delta("".join(released), hit, tuple(pieces))
        return Delta("".join(released), None, tuple(pieces))

    def finish(self) -> Delta:
        """Release what was held back: the possible start of a stop string, and U+FFFD for half a character."""
        if self._finished:
            return Delta("")
        released: list[str] = []
        text = self._decoder.decode(b"", final=True)
        self._length += len(text)
        hit = self._take(text, released) if text and self._stop else None
        if hit is None:
            released += [self._held] if self._stop else [text]
        self._held = ""
        self._finished = True
        return Delta("".join(released), hit)

    def _take(self, text: str, released: list[str]) -> str | None:
        """Add ``text`` behind what is held, release all that can't belong to a stop string; the stop that was met."""
        text = self._held + text
        best: tuple[int, int, str] | None = None
        for stop in self._stop:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        if best is not None:
            end, start, stop = best
            released.append(text[: end if self._include_stop else start])
            self._held = ""
            self._finished = True
            return stop
        keep = self._held_from(text)
        released.append(text[:keep])
        self._held = text[keep:]
        return None

    def _held_from(self, text: str) -> int:
        """Where the longest tail that might become a stop string begins."""
        longest = max(map(len, self._stop)) - 1
        for start in range(max(0, len(text) - longest), len(text)):
            if text[start] in self._firsts and text[start:] in self._prefixes:
                return start
        return len(text)
