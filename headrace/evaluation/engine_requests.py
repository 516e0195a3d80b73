"""Requests of several kinds for engines under experiment, what they got, and how much of that is the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from headrace.engine.request_stream import RequestStream
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import TokenLogprob


class Said(NamedTuple):
    """All of one choice."""

    choice: int
    tokens: list[int]
    logprobs: list[TokenLogprob]


def prompt_of(length: int, seed: int) -> list[int]:
    """Tokens that nobody else has."""
    generator = random.Random(seed)
    return [generator.randrange(100, 40_000) for _ in range(length)]


def mixed_params(number: int, output: int) -> SamplingParams:
    """Greedy and drawn, one choice and two, with logprobs, with penalties: by the request's number."""
    return SamplingParams(
        max_tokens=output, temperature=(0.0, 0.9)[number % 2], seed=number, ignore_eos=True, n=1 + (number % 4 == 3),
        top_logprobs=2 if number % 3 == 1 else None, repetition_penalty=1.2 if number % 3 == 2 else 1.0,
    )  # fmt: skip


async def collect(stream: RequestStream, heard: Callable[[], object] = lambda: None) -> list[Said]:
    """All that a stream gives, choice by choice; ``heard`` at each piece."""
    got: dict[int, Said] = {}
    async for outputs in stream:
        heard()
        for output in outputs:
            said = got.setdefault(output.choice, Said(output.choice, [], []))
            said.tokens.extend(output.tokens)
            said.logprobs.extend(output.logprobs or ())
    return [got[choice] for choice in sorted(got)]


def share_alike(expected: Sequence[object], got: Sequence[object]) -> float:
    """Per cent that are equal."""
    return 100.0 * sum(one == other for one, other in zip(expected, got, strict=True)) / len(expected)
