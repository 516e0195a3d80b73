"""Who guesses in the matrix: one that has read the answers, and a model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from knowing import Knowing

from headrace.kernels.interface import ChainRunner
from headrace.kernels.sampler import Sampler
from headrace.scheduling.cost import Cost
from headrace.speculation.draft_model import DraftModel

PAGES = 48
"""Of a draft model, bf16: not enough for eight long streams, so that some of them give way."""


class ThirdOf(Cost):
    """Runs of a draft that take a third of a step of the model, which takes a second."""

    def predict(self, tokens: int, pairs: int, rows: int, adapters: int = 0) -> float:
        return 0.3 + 1e-6 * tokens

    def observe(self, tokens: int, pairs: int, rows: int, seconds: float, adapters: int = 0) -> None:
        """Nothing is learnt."""


def knowing(said: Iterable[tuple[list[int], list[int]]], vocab: int) -> Knowing:
    """Right about four tokens of five of these (prompt, answer)."""
    found = Knowing(seed=1, vocab=vocab)
    for prompt, answer in said:
        found.learn([prompt], [(0, answer)])
    return found


def small_draft(chain: ChainRunner, vocab: int) -> DraftModel:
    """A model that guesses, on ``chain``, with pages of its own."""
    pages = np.empty((PAGES, chain.page_layout.page_bytes), np.uint8)
    return DraftModel(chain, pages, Sampler(vocab), ThirdOf(), ThirdOf())
