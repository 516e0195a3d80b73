"""What a load consists of: when requests come, how long they are, and real words to fill them with."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.planning.workload import Lengths, arrival_times, parse_lengths

__all__ = ["Lengths", "Request", "Shape", "arrival_times", "parse_lengths", "passage", "requests", "vocabulary"]


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """English words in their natural order, from the reference text that Python itself ships."""
    from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]

    words = [word for key in sorted(topics) for word in topics[key].split() if word.strip("*=-+|.~^")]
    return tuple(words)


def passage(words: int, rng: random.Random) -> str:
    """A passage of running text with this many words, starting anywhere."""
    source = vocabulary()
    start = rng.randrange(len(source))
    taken = [source[(start + offset) % len(source)] for offset in range(words)]
    return " ".join(taken)


@dataclass(frozen=True, slots=True)
class Shape:
    """The requests of a load: lengths in tokens, and prefixes that requests share.

    Each request begins with one of ``prefixes`` texts of ``prefix_tokens`` tokens (0: nothing shared).
    ``tokens_per_word`` converts; it is measured at the server where that is possible.
    """

    prompt: Lengths
    output: Lengths
    prefixes: int = 1
    prefix_tokens: int = 0
    tokens_per_word: float = 1.5


@dataclass(frozen=True, slots=True)
class Request:
    """One planned request; ``prompt_tokens`` is the aim, the server counts what it became."""

    index: int
    prompt: str
    prompt_tokens: int
    output_tokens: int


def requests(shape: Shape, count: int, seed: int) -> Sequence[Request]:
    """``count`` requests; the same seed gives the same texts and lengths."""
    rng = random.Random(seed)
    prefix_words = round(shape.prefix_tokens / shape.tokens_per_word)
    shared = [passage(prefix_words, rng) for _ in range(shape.prefixes)] if prefix_words else [""]
    planned = []
    for index in range(count):
        tokens = shape.prompt.draw(rng)
        own_words = max(1, round(tokens / shape.tokens_per_word) - prefix_words)
        text = f"{rng.choice(shared)} {passage(own_words, rng)}".strip()
        planned.append(Request(index, text, tokens, shape.output.draw(rng)))
    return planned
