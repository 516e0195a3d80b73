"""What the engine asks of whatever computes the model: one flat batch in, hidden rows and logits out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.models.config import ModelConfig

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Shape of one KV page: all layers of ``tokens`` consecutive positions.

    Inside a page, per layer and KV head: K as [head_dim, tokens], then V as [tokens, head_dim], both bf16.

    ::

        page = [layer 0: [head 0: K^T V] [head 1: K^T V] …] [layer 1: …] …
    """

    tokens: int
    page_bytes: int


@dataclass(slots=True)
class StepBatch:
    """A step flattened to arrays (all int32, C-contiguous, trimmed to their used length).

    ``token_ids``, ``positions``: [T] one entry a row. ``slice_starts``: [S + 1] row offsets of each slice.
    ``page_starts``: [S + 1] offsets into ``page_ids``; slice *s* owns pages
    ``page_ids[page_starts[s] : page_starts[s + 1]]``, page *j* of it holding positions 16·j … 16·j + 15.
    ``output_rows``: [R] rows whose final hidden state is kept for the head (or as an embedding).
    """

    token_ids: Int32
    positions: Int32
    slice_starts: Int32
    page_starts: Int32
    page_ids: Int32
    output_rows: Int32


class ChainRunner(Protocol):
    """A chain of blocks that can be executed. Rows never influence each other except through KV pages."""

    config: ModelConfig
    page_layout: PageLayout

    def forward(self, batch: StepBatch, pool: Bytes) -> None:
        """Run every block over the batch; write K and V of each row into ``pool`` ([pages, page_bytes]), then read.

        Keeps the normed final hidden state of ``output_rows`` for :meth:`hidden` and :meth:`logits`.
        """

    def hidden(self) -> Float32:
        """The kept rows, [R, hidden], valid until the next forward."""

    def logits(self, first: int, count: int) -> Float32:
        """Logits of kept rows ``first … first + count``: [count, vocab], valid until the next call."""

    def greedy(self, first: int, count: int) -> Int32:
        """Arg-max token of each of those rows (lowest id wins a tie) without keeping the logits."""
