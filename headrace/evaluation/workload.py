"""What a load consists of: when requests come, how long they are, and real words to fill them with."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.errors import HeadraceError
from headrace.settings.nearest import suggestion

LengthKind = Literal["fixed", "normal", "lognormal", "uniform"]
_KINDS: dict[str, tuple[LengthKind, int]] = {
    "fixed": ("fixed", 1),
    "normal": ("normal", 2),
    "lognormal": ("lognormal", 2),
    "uniform": ("uniform", 2),
}


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts, never below 1.

    ``a`` and ``b`` are: fixed – the count; normal – mean and standard deviation as a share of it; lognormal – median
    and sigma of the logarithm; uniform – lowest and highest.
    """

    kind: LengthKind
    a: float
    b: float = 0.0

    def draw(self, rng: random.Random) -> int:
        """One length in tokens."""
        if self.kind == "fixed":
            value = self.a
        elif self.kind == "normal":
            value = rng.gauss(self.a, self.a * self.b)
        elif self.kind == "lognormal":
            value = self.a * rng.lognormvariate(0.0, self.b)
        else:
            value = rng.uniform(self.a, self.b)
        return max(1, round(value))


def parse_lengths(text: str, param: str) -> Lengths:
    """``128``, ``fixed:128``, ``normal:256:0.3``, ``lognormal:200:0.8`` or ``uniform:16:512``.

    Raises ``invalid_setting`` naming ``param`` for anything else.
    """
    name, *numbers = text.split(":") if ":" in text else ("fixed", text)
    if name not in _KINDS:
        raise HeadraceError("invalid_setting", f"{param}: unknown distribution '{name}'{suggestion(name, _KINDS)}", param=param)
    kind, wanted = _KINDS[name]
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    if len(values) != wanted or not all(0 <= value <= 1_000_000 for value in values) or values[0] < 1:
        form = {"fixed": "N", "normal": "MEAN:SHARE", "lognormal": "MEDIAN:SIGMA", "uniform": "LOW:HIGH"}[kind]
        raise HeadraceError(
            "invalid_setting", f"{param}: '{text}' is not {kind}:{form} with numbers from 1 to 1,000,000", param=param
        )
    return Lengths(kind, *values)


def arrival_times(rate: float, shape: float, rng: random.Random) -> Iterator[float]:
    """Seconds at which requests come, without end: Gamma gaps with mean 1/rate.

    ``shape`` 1 is a Poisson process, below 1 is burstier, above 1 more regular.
    """
    now = 0.0
    while True:
        now += rng.gammavariate(shape, 1 / (rate * shape))
        yield now


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
