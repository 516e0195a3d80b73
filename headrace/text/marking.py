"""Input marking: user strings go through a template without ever spelling a special token.

Every place in a user string that begins a special token (or ends as one might begin) is broken by a private nonce
character that occurs nowhere in the request. Templates copy strings, trim them, change their case or take tags out
of them, so all this is looked through; after rendering each special token that is still whole was written by the
template. The nonce is taken out again before ordinary pieces are encoded, so marking costs no token and changes no
text. (llama.cpp's server has the same aim by tracking where each input went.)
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headrace.errors import HeadraceError

_PREFIX = 4
_PRIVATE_USE = (0xE000, 0xF8FF)
ROLES = ("system", "developer", "user", "assistant", "tool")
# Templates compare these values and look these keys up, so they stay readable even where one is the inside of a special
# token such as "<|user|>".
_STRUCTURAL_VALUES = {
    "role": frozenset(ROLES),
    "type": frozenset({"function", "text", "string", "number", "integer", "boolean", "array", "object", "null"}),
}
_STRUCTURAL_KEYS = frozenset(
    {
        *("role", "type", "content", "name", "text", "tool_calls", "tool_call_id", "id", "function", "arguments", "description"),
        *("parameters", "properties", "required", "items", "enum", "default", "title", "format", "strict", "thinking"),
    }
)
# What may stand between the parts of a special token that a template puts together: white space, or a tag that it takes out.
_REMOVABLE = r"[\s<\[{]"


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token's text and id; ``lstrip``/``rstrip``: it swallows white space on that side."""

    text: str
    token_id: int
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A rendered prompt in which ``nonce`` (one character, or empty: no user strings) breaks users' special tokens."""

    text: str
    nonce: str

    @property
    def plain(self) -> str:
        """The prompt as people should see it."""
        return self.text.replace(self.nonce, "") if self.nonce else self.text


class Marker:
    """Knows all special tokens of one model: marks user strings, splits rendered prompts."""

    def __init__(self, specials: Sequence[SpecialToken]) -> None:
        for special in specials:
            if len(special.text) < 2:
                raise HeadraceError("model_file", "a special token of fewer than two characters can't be told from text")
        self._specials = {special.text: special for special in specials}

    @cached_property
    def _begins(self) -> re.Pattern[str]:
        """Matches the first character wherever a special token might begin.

        That is where its first characters stand, or fewer of them before the text's end or something removable.
        """
        rests: dict[str, set[str]] = {}
        for text in self._specials:
            begin = text[:_PREFIX]
            rest = rests.setdefault(begin[0], set())
            rest.add(re.escape(begin[1:]))
            rest.update(rf"{re.escape(begin[1:length])}(?:\Z|{_REMOVABLE})" for length in range(1, len(begin)))
        return _first_before(rests, re.IGNORECASE)

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        """Matches the first character of what begins like a special token, as templates write it."""
        rests: dict[str, set[str]] = {}
        for text in self._specials:
            rests.setdefault(text[0], set()).add(re.escape(text[1:_PREFIX]))
        return _first_before(rests)

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """First character of special tokens to their lengths, longest first."""
        lengths: dict[str, set[int]] = {}
        for text in self._specials:
            lengths.setdefault(text[0], set()).add(len(text))
        return {first: sorted(found, reverse=True) for first, found in lengths.items()}

    @cached_property
    def _inner(self) -> tuple[str, int]:
        """All special tokens without their first character, folded and joined for substring search; the longest one's length."""
        return "\0".join(text[1:] for text in self._specials).lower() + "\0", max(map(len, self._specials), default=0)

    @cached_property
    def _inner_chars(self) -> frozenset[str]:
        return frozenset(self._inner[0]) - {"\0"}

    @cached_property
    def _last_chars(self) -> frozenset[str]:
        return frozenset(text[-1:].lower() for text in self._specials)

    def choose_nonce(self, *values: Any) -> str:
        """A private-use character that occurs in no special token and none of ``values`` (strings, or lists and dicts of them).

        Errors: ``HeadraceError("invalid_value")`` when a request uses up all 6,400 of them.
        """
        used: set[str] = set()
        for value in (*values, list(self._specials)):
            _collect_private(value, used)
        first, last = _PRIVATE_USE
        start = secrets.randbelow(last - first + 1)
        for step in range(last - first + 1):
            candidate = chr(first + (start + step) % (last - first + 1))
            if candidate not in used:
                return candidate
        raise HeadraceError("invalid_value", "the request uses every private-use character; at least one must stay free")

    def mark(self, value: Any, nonce: str) -> Any:
        """A copy of ``value`` in which no user string, key or value, can spell or complete a special token."""
        return self._mark(value, nonce, None)

    def _mark(self, value: Any, nonce: str, key: str | None) -> Any:
        if isinstance(value, str):
            return self._mark_string(value, nonce, whole=value not in _STRUCTURAL_VALUES.get(key or "", ()))
        if isinstance(value, Mapping):
            return {
                self._mark_string(str(k), nonce, whole=k not in _STRUCTURAL_KEYS): self._mark(v, nonce, str(k))
                for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._mark(entry, nonce, key) for entry in value]
        return value

    def _mark_string(self, text: str, nonce: str, *, whole: bool) -> str:
        if not text:
            return text
        trimmed = text.lstrip()
        head = trimmed[: self._inner[1]].lower()
        if head[:1] in self._inner_chars and (self._ends_special(head) or (whole and self._inside_special(trimmed))):
            text = text[: len(text) - len(trimmed)] + nonce + trimmed
        return self._begins.sub(lambda match: match[0] + nonce, text)

    def _ends_special(self, head: str) -> bool:
        """True when ``head`` begins with the tail of a special token, whose beginning a template might have written."""
        inner, longest = self._inner
        return any(char in self._last_chars and f"{head[: index + 1]}\0" in inner for index, char in enumerate(head[: longest - 1]))

    def _inside_special(self, text: str) -> bool:
        inner, longest = self._inner
        part = text.rstrip()
        return len(part) < longest and "\0" not in part and part.lower() in inner

    def split(self, marked: MarkedText) -> list[str | int]:
        """The prompt as ordinary pieces (nonce taken out) and ids of the special tokens that the template wrote."""
        text, nonce = marked.text, marked.nonce
        pieces: list[str | int] = []
        start = 0
        for match in self._starts.finditer(text):
            if match.start() < start:
                continue
            special = self._special_at(text, match.start())
            if special is None:
                continue
            before = text[start : match.start()]
            pieces.append(_plain(before.rstrip() if special.lstrip else before, nonce))
            pieces.append(special.token_id)
            start = match.start() + len(special.text)
            while special.rstrip and start < len(text) and text[start].isspace():
                start += 1
        pieces.append(_plain(text[start:], nonce))
        return [piece for piece in pieces if piece != ""]

    def _special_at(self, text: str, index: int) -> SpecialToken | None:
        for length in self._lengths[text[index]]:
            special = self._specials.get(text[index : index + length])
            if special is not None:
                return special
        return None


def _first_before(rests: Mapping[str, Iterable[str]], flags: int = 0) -> re.Pattern[str]:
    """Matches a character that one of its patterns follows, and nothing but the character."""
    parts = [f"{re.escape(first)}(?={'|'.join(sorted(rest))})" for first, rest in rests.items()]
    return re.compile("|".join(parts) or r"(?!)", flags)


def _plain(text: str, nonce: str) -> str:
    return text.replace(nonce, "") if nonce else text


_PRIVATE_PATTERN = re.compile(f"[{chr(_PRIVATE_USE[0])}-{chr(_PRIVATE_USE[1])}]")


def _collect_private(value: Any, used: set[str]) -> None:
    if isinstance(value, str):
        if not value.isascii():
            used.update(_PRIVATE_PATTERN.findall(value))
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _collect_private(str(key), used)
            _collect_private(entry, used)
    elif isinstance(value, list | tuple):
        for entry in value:
            _collect_private(entry, used)
