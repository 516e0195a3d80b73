"""What the engine asks of whatever computes the model: one flat batch in, hidden rows and logits out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from headrace.models.config import ModelConfig

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


PAGE_TOKENS = 16  # positions of one KV page

KvFormat = Literal["bf16", "kv8", "kv4"]
KV_BITS: dict[KvFormat, int] = {"bf16": 16, "kv8": 8, "kv4": 4}
TorchKv = KvFormat | Literal["fp32"]
"""fp32: as torch computes, in rows that any attention can read (:class:`headrace.kernels.torch_pages.RowPages`)."""


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Shape of one KV page: all layers of ``tokens`` consecutive positions, keys and values in format ``kv``.

    A page holds everything that is needed to read it, so that a copy of its bytes is a copy of the keys and values.
    ``strips``: equal parts of a page that lie apart in the pool, all pages' first parts side by side, then all second ones …

    Per layer and KV head: K and V as bf16, K as [head_dim, tokens], V as [tokens, head_dim]; or, in ``kv8`` and ``kv4``,
    codes of 8 or 4 bits and then, for each token, step and middle of its key and of its value (drawn in csrc/kv_format.hpp).

    ::

        page = [layer 0: [head 0: K V] [head 1: K V] …] [layer 1: …] …
    """

    tokens: int
    page_bytes: int
    kv: TorchKv = "bf16"
    strips: int = 1


def kv_head_bytes(kv: KvFormat, head_dim: int) -> int:
    """Bytes of one KV head of one layer in a page: codes of K and V, and the parameters of coded formats."""
    return 2 * PAGE_TOKENS * head_dim * KV_BITS[kv] // 8 + (0 if kv == "bf16" else 4 * PAGE_TOKENS * 2)


@dataclass(frozen=True, slots=True, eq=False)
class AdapterDirectory:
    """Where the numbers of an adapter begin, for each (layer, module) in the order of layers and of ``q k v o gate up down``.

    ``places``: int32 [layers · 7, 5] of rank (0: the module is not changed), page and byte of A, page and byte of B; pages
    count the adapter's own. ``scales``: float32 [layers · 7]. See :mod:`headrace.kernels.adapter_layout`.
    """

    places: Int32
    scales: Float32


@dataclass(frozen=True, slots=True, eq=False)
class PlacedAdapter:
    """An adapter that lies in these ``pages`` of the pool (int32 [n])."""

    pages: Int32
    directory: AdapterDirectory


@dataclass(frozen=True, slots=True, eq=False)
class StepAdapters:
    """Which adapters the slices of a step use: slice *s* those of ``ids[starts[s] : starts[s + 1]]``, in that order, each
    multiplied by its ``scales`` entry. ``ids`` (int32) index ``adapters``; ``starts``: int32 [S + 1]; ``scales``: float32.

    Sums of several adapters are added in the order of the list. Slices without any take no part.
    """

    starts: Int32
    ids: Int32
    scales: Float32
    adapters: tuple[PlacedAdapter, ...]


@dataclass(slots=True)
class StepBatch:
    """A step flattened to arrays (all int32, C-contiguous, trimmed to their used length).

    ``token_ids``, ``positions``: [T] one entry a row. ``slice_starts``: [S + 1] row offsets of each slice.
    ``page_starts``: [S + 1] offsets into ``page_ids``; slice *s* owns pages
    ``page_ids[page_starts[s] : page_starts[s + 1]]``, page *j* of it holding positions 16·j … 16·j + 15.
    ``output_rows``: [R] rows whose final hidden state is kept for the head (or as an embedding).
    ``adapters``: what changes the weights for some of the slices (``None``: nothing for none).
    ``first_rows``: ``None``, or [S]: where all pages of slice *s* can be read one after the other, the row of the pool at which
    the first one is, else −1. Rows are written where ``page_ids`` says.
    """

    token_ids: Int32
    positions: Int32
    slice_starts: Int32
    page_starts: Int32
    page_ids: Int32
    output_rows: Int32
    adapters: StepAdapters | None = None
    first_rows: Int32 | None = None


class ChainRunner(Protocol):
    """A chain of blocks that can be executed. Rows never influence each other except through KV pages."""

    config: ModelConfig
    page_layout: PageLayout

    def forward(self, batch: StepBatch, pool: Bytes) -> None:
        """Run every block over the batch; write K and V of each row into ``pool`` ([pages, page_bytes]), then read.

        Rows of ``pool`` behind the pages show some of these again, read-only, for slices with a first row.

        Keeps the normed final hidden state of ``output_rows`` for :meth:`hidden` and :meth:`logits`.
        """

    def hidden(self) -> Float32:
        """The kept rows, [R, hidden], valid until the next forward."""

    def logits(self, first: int, count: int) -> Float32:
        """Logits of kept rows ``first … first + count``: [count, vocab], valid until the next call."""

    def greedy(self, first: int, count: int) -> Int32:
        """Arg-max token of each of those rows (lowest id wins a tie) without keeping the logits."""
