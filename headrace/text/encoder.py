"""What turns ordinary text into token ids: the library in this process, or the same library in another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer as FastTokenizer

LONG_TEXT = 2048


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids with the character range [start, end) of the text that each one covers."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Encoder(Protocol):
    """Encodes text without special tokens. Safe to share between threads."""

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that is valid Unicode."""
        ...

    def spans(self, text: str) -> Encoding:
        """The same with the characters that each token came from (tokens inside one character share it)."""
        ...


class LibraryEncoder:
    """The ``tokenizers`` library in this process. Long texts let other Python threads run meanwhile; making one does not."""

    def __init__(self, fast: FastTokenizer) -> None:
        fast.encode_special_tokens = True
        self._fast = fast

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that is valid Unicode."""
        ids: list[int] = self._encode(text).ids
        return ids

    def spans(self, text: str) -> Encoding:
        """The same with the characters that each token came from."""
        encoding = self._encode(text, offsets=True)
        if len(text) <= LONG_TEXT:
            return Encoding(encoding.ids, [(start, end) for start, end in encoding.offsets])
        # One by one, so that no single call holds the interpreter for long.
        return Encoding(encoding.ids, [encoding.token_to_chars(at) or (0, 0) for at in range(len(encoding))])

    def _encode(self, text: str, *, offsets: bool = False) -> Any:
        """Encode; a long text as a batch of one, since only batches let other Python threads run meanwhile."""
        if len(text) <= LONG_TEXT:
            return self._fast.encode(text, add_special_tokens=False)
        encode = self._fast.encode_batch if offsets else self._fast.encode_batch_fast
        return encode([text], add_special_tokens=False)[0]
