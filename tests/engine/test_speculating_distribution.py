"""Tokens that are drawn behind drafts come as often as the model says: chi² on a model whose next token follows from the last."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from test_speculating import gauges
from toy_chain import VOCAB, Shape, ToyChain, toy_engine

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.evaluation.statistics import Fit
from headrace.kernels.interface import Bytes, Float32, StepBatch
from headrace.speculation.proposer import Accepted, Ask, Proposal, Stream

KNOWN = 50  # tokens that ever come
STREAMS, TOKENS = 120, 420


class Markov(ToyChain):
    """The logits behind a token stand in a table, so that thousands of draws are made in a second."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = np.random.default_rng(seed).standard_normal((VOCAB, VOCAB)).astype(np.float32) * 1.5
        self.table[:, KNOWN:] = -60.0

    def forward(self, batch: StepBatch, pool: Bytes) -> None:
        self._kept = self.table[batch.token_ids[batch.output_rows]]

    def logits(self, first: int, count: int) -> Float32:
        return self._kept[first : first + count].copy()


class Guesser:
    """Three tokens, each drawn from a table that is not quite the model's, or its likeliest."""

    name = "guesser"
    grades: tuple[float, ...] = (0.4,)
    light = False
    depth = 3

    def __init__(self, table: Float32, *, drawn: bool) -> None:
        chances = np.exp(table[:, :KNOWN].astype(np.float64))
        self._next = [row.cumsum().tolist() for row in chances]
        self._likeliest = chances.argmax(axis=1).tolist()
        self._drawn = drawn
        self._rng = random.Random(8)

    def serves(self, stream: Stream) -> bool:
        return True

    def price(self, asks: Sequence[Ask]) -> float:
        return 0.0

    def propose(self, asks: Sequence[Ask]) -> list[Proposal | None]:
        return [self._behind(ask.stream.tokens[-1], min(ask.most, self.depth)) for ask in asks]

    def accepted(self, news: Sequence[Accepted]) -> None:
        """Nothing is learnt."""

    def ended(self, stream: Stream) -> None:
        """Nothing was kept."""

    def _behind(self, token: int, count: int) -> Proposal:
        tokens = []
        for _ in range(count):
            token = self._rng.choices(range(KNOWN), cum_weights=self._next[token])[0] if self._drawn else self._likeliest[token]
            tokens.append(token)
        return Proposal(tokens, [0] * count)


@pytest.mark.parametrize("drawn", [False, True], ids=["likeliest", "drawn"])
def test_drawn_tokens_come_as_often_as_the_model_says(drawn: bool) -> None:
    """50,000 draws over 50 tokens, each behind each. Everything is seeded, so that this passes always or never."""
    chain = Markov(seed=4)
    blurred = chain.table + 0.5 * np.random.default_rng(6).standard_normal(chain.table.shape).astype(np.float32)
    proposer = Guesser(blurred, drawn=drawn)
    engine = toy_engine(Shape(pages=STREAMS * (TOKENS // 4 + 4), step_tokens=512, proposers=[proposer]), chain)
    for number in range(STREAMS):
        chosen = SamplingParams(max_tokens=TOKENS, temperature=1.0, ignore_eos=True, seed=number)
        engine.submit(Submit(number, [number % KNOWN], chosen))
    said: dict[int, list[int]] = {number: [number % KNOWN] for number in range(STREAMS)}
    while engine.live:
        outputs = engine.step()
        for output in outputs.outputs if outputs is not None else ():
            said[output.request_id] += output.tokens
    counts = np.zeros((KNOWN, KNOWN))
    for tokens in said.values():
        np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    assert counts.sum() == STREAMS * TOKENS
    fit = Fit()
    for row, logits in zip(counts, chain.table[:KNOWN, :KNOWN].astype(np.float64), strict=True):
        fit.add(row.tolist(), (np.exp(logits) / np.exp(logits).sum()).tolist())
    assert fit.freedom > 1000
    assert fit.p > 0.01
    assert gauges(engine).drafted > gauges(engine).accepted > STREAMS * TOKENS // 20
