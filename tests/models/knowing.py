"""A proposer that has read the answers, and times in which all that it proposes is verified."""

from __future__ import annotations

import random
from collections.abc import Sequence

from headrace.scheduling.cost import Cost
from headrace.speculation.proposer import MOST_DRAFTED, Accepted, Ask, Proposal, Stream


class FreeRows(Cost):
    """Times in which rows cost next to nothing, whatever is measured, so that all that is proposed is verified."""

    def predict(self, tokens: int, pairs: int, rows: int, adapters: int = 0) -> float:
        """A step takes a second."""
        return 1.0 + 1e-6 * tokens

    def observe(self, tokens: int, pairs: int, rows: int, seconds: float, adapters: int = 0) -> None:
        """Nothing is learnt."""


class Knowing:
    """Knows what will be said, and is wrong about some of it."""

    name = "knowing"
    grades: tuple[float, ...] = (0.9,)
    light = False
    depth = MOST_DRAFTED

    def __init__(self, wrong: float = 0.2, seed: int = 0, vocab: int = 97) -> None:
        self.sequences: list[list[int]] = []
        self.asked = self.told = 0
        self.over: list[int] = []
        self._wrong = wrong
        self._vocab = vocab
        self._rng = random.Random(seed)

    def serves(self, stream: Stream) -> bool:
        """Any."""
        return True

    def price(self, asks: Sequence[Ask]) -> float:
        return 0.0

    def propose(self, asks: Sequence[Ask]) -> list[Proposal | None]:
        self.asked += len(asks)
        return [self._propose(*ask) for ask in asks]

    def accepted(self, news: Sequence[Accepted]) -> None:
        for stream, count, row in news:
            assert row >= 0
            assert count >= 1
            assert len(stream.tokens) >= stream.prompt_length + count
            self.told += count

    def ended(self, stream: Stream) -> None:
        self.over.append(stream.stream_id)

    def learn(self, prompts: Sequence[list[int]], said: Sequence[tuple[int, list[int]]]) -> None:
        """Remember what was said: (index of the prompt, tokens)."""
        for prompt, tokens in said:
            self.sequences.append([*prompts[prompt], *tokens])

    def _propose(self, stream: Stream, most: int) -> Proposal | None:
        length = len(stream.tokens)
        known = next((one for one in self.sequences if one[:length] == stream.tokens), None)
        if known is None:
            return None
        tokens = known[length : length + self._rng.randint(1, most)]
        tokens = [token if self._rng.random() >= self._wrong else self._rng.randrange(self._vocab) for token in tokens]
        tokens += [self._rng.randrange(self._vocab) for _ in range(min(2, most - len(tokens)))]
        return Proposal(tokens, [0] * len(tokens)) if tokens else None
