"""What comes and when: distributions of lengths and arrival times, or a trace of requests that came once."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headrace.errors import HeadraceError
from headrace.scheduling.simulation import Arrival
from headrace.settings.nearest import suggestion

MOST_TRACED = 5_000_000
_LONGEST_LINE = 4096
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


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests by distribution. ``shape``: 1 is a Poisson process, below 1 burstier. ``longest``: prompt and output together are
    cut to this many tokens, the model's context."""

    prompt: Lengths
    output: Lengths
    shape: float = 1.0
    longest: int = 2**31

    def arrivals(self, rate: float, count: int, seed: int) -> Iterator[Arrival]:
        """``count`` requests at ``rate`` a second. One seed gives the same requests at any rate, closer together or apart."""
        rng = random.Random(seed)
        times = arrival_times(rate, self.shape, random.Random(seed + 1))
        for _ in range(count):
            prompt = min(self.prompt.draw(rng), self.longest - 1)
            yield Arrival(next(times), prompt, min(self.output.draw(rng), self.longest - prompt))


@dataclass(frozen=True, slots=True)
class TracedTraffic:
    """Requests that came once, in order of time; ``rate`` is how many a second there were."""

    requests: tuple[Arrival, ...]

    @property
    def rate(self) -> float:
        """Requests a second, as they came."""
        return len(self.requests) / max(self.requests[-1].time, 1e-9)

    def arrivals(self, rate: float, count: int, seed: int) -> Iterator[Arrival]:
        """The first ``count`` of them, drawn together or apart until ``rate`` come in a second; there is nothing random."""
        stretch = self.rate / rate
        for one in self.requests[:count]:
            yield Arrival(one.time * stretch, one.prompt, one.output)


def read_trace(path: Path, longest: int) -> TracedTraffic:
    """A trace file: a line for each request, ``{"time": seconds, "prompt": tokens, "output": tokens}``, in any order.

    Lengths are cut to ``longest`` tokens in all. Raises ``invalid_value`` naming the line that is not so.
    """
    found: list[Arrival] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), 1):
                if number > MOST_TRACED:
                    raise HeadraceError("invalid_value", f"{path} has more than {MOST_TRACED:,} lines", param="trace")
                if line.strip():
                    found.append(_arrival(line, number, path, longest))
    except OSError as error:
        raise HeadraceError("invalid_value", f"can't read {path}: {error.strerror}", param="trace") from None
    if len(found) < 2:
        raise HeadraceError("invalid_value", f"{path} holds {len(found)} requests; a trace needs two or more", param="trace")
    found.sort(key=lambda arrival: arrival.time)
    began = found[0].time
    return TracedTraffic(tuple(Arrival(one.time - began, one.prompt, one.output) for one in found))


def _arrival(line: bytes, number: int, path: Path, longest: int) -> Arrival:
    try:
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"it is longer than {_LONGEST_LINE} bytes")
        data: Any = json.loads(line)
        if not isinstance(data, dict):
            raise ValueError("it is not an object")
        time = data.get("time")
        if isinstance(time, bool) or not isinstance(time, int | float) or not math.isfinite(time) or abs(time) > 1e12:
            raise ValueError("'time' must be seconds")
        prompt, output = _count(data, "prompt"), _count(data, "output")
    except (ValueError, RecursionError) as error:
        raise HeadraceError("invalid_value", f"{path}, line {number}: {error}", param="trace") from None
    prompt = min(prompt, longest - 1)
    return Arrival(float(time), prompt, min(output, longest - prompt))


def _count(data: dict[str, Any], name: str) -> int:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000_000:
        raise ValueError(f"'{name}' must be a count of tokens, 1 to 10,000,000")
    return value
