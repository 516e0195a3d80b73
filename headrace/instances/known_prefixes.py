"""Where prompts that begin alike have been sent: a bounded memory of the dispatcher's own, so that no instance is asked."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

CHUNK_TOKENS = 64
MOST_CHUNKS = 65_536
LONGEST = 128  # chunks of a prompt that are looked at


class KnownPrefixes:
    """By chained hashes of chunks of 64 tokens, the instances that computed them last. Wrong guesses cost time and no exactness."""

    def __init__(self, page_tokens: int, most: int = MOST_CHUNKS) -> None:
        self._pages = CHUNK_TOKENS // page_tokens
        self._most = most
        self._chunks: OrderedDict[int, set[int]] = OrderedDict()

    def find(self, root: object, prompt: Sequence[int]) -> dict[int, int]:
        """By instance, pages of this prompt's beginning that it was sent before."""
        found: dict[int, int] = {}
        there: set[int] | None = None
        for depth, key in enumerate(_chain(root, prompt)):
            known = self._chunks.get(key)
            there = set(known or ()) if there is None else there & (known or set())
            if not there:
                break
            for number in there:
                found[number] = (depth + 1) * self._pages
        return found

    def note(self, root: object, prompt: Sequence[int], number: int) -> None:
        """An instance computes this prompt."""
        for key in _chain(root, prompt):
            self._chunks.setdefault(key, set()).add(number)
            self._chunks.move_to_end(key)
        while len(self._chunks) > self._most:
            self._chunks.popitem(last=False)

    def forget(self, number: int) -> None:
        """An instance has ended."""
        for key in [key for key, there in self._chunks.items() if number in there]:
            self._chunks[key].discard(number)
            if not self._chunks[key]:
                del self._chunks[key]


def _chain(root: object, prompt: Sequence[int]) -> Iterator[int]:
    key = hash(root)
    for chunk in range(min(LONGEST, len(prompt) // CHUNK_TOKENS)):
        key = hash((key, array("i", prompt[chunk * CHUNK_TOKENS : (chunk + 1) * CHUNK_TOKENS]).tobytes()))
        yield key
