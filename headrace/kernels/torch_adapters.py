"""What adapters add to the products of a step, in plain torch: a loop over slices, the slow oracle of the native kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from headrace.kernels.adapter_pages import read_back
from headrace.kernels.interface import Bytes, StepBatch
from headrace.models.adapter import Adapter, LowRank, decode_bf16
from headrace.models.config import ModelConfig

Addition = Callable[[str, Tensor], Tensor | None]
"""Of a module (``q``, ``gate``, …) and the rows [T, inputs] that meet it: what is added to its outputs, ``None`` for nothing."""


def no_addition(module: str, x: Tensor) -> Tensor | None:
    """For a step without adapters."""
    return None


class TorchAdapters:
    """The adapters of one step, read back from its pages."""

    def __init__(self, config: ModelConfig, batch: StepBatch, pool: Bytes) -> None:
        self._uses: list[tuple[int, int, Adapter, float]] = []  # first and end row, adapter, factor
        own = batch.adapters
        if own is None:
            return
        adapters = [read_back(placed, config, pool) for placed in own.adapters]
        for slice_index in range(len(batch.slice_starts) - 1):
            first, end = (int(row) for row in batch.slice_starts[slice_index : slice_index + 2])
            for use in range(int(own.starts[slice_index]), int(own.starts[slice_index + 1])):
                self._uses.append((first, end, adapters[int(own.ids[use])], float(own.scales[use])))

    def layer(self, layer: int) -> Addition:
        """What they add in one layer."""
        return partial(self._add, layer) if self._uses else no_addition

    def _add(self, layer: int, module: str, x: Tensor) -> Tensor | None:
        parts = [(first, end, adapter.layers[layer].get(module), factor) for first, end, adapter, factor in self._uses]
        outputs = next((part.b.shape[0] for _, _, part, _ in parts if part is not None), 0)
        if not outputs:
            return None
        total = x.new_zeros((len(x), outputs))
        for first, end, part, factor in parts:
            if part is not None:
                total[first:end] += _product(part, x[first:end]) * (factor * part.scale)
        return total


def _product(part: LowRank, x: Tensor) -> Tensor:
    a, b = (torch.from_numpy(np.ascontiguousarray(decode_bf16(codes))).to(x) for codes in (part.a, part.b))
    return x @ a.T @ b.T
