"""What calibration rows tell about the inputs of a product, and how that changes with the weights in front of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class InputStatistics:
    """Of the rows X that meet a matrix with K inputs.

    ``hessian``: mean of xᵀx, [K, K]. ``peak``: largest magnitude of each input, [K]. ``sample``: some of the rows, [S, K].
    """

    hessian: Float32
    peak: Float32
    sample: Float32

    @property
    def importance(self) -> Float32:
        """Mean square of each input, [K]."""
        return np.diag(self.hessian)

    def divided(self, factors: Float32) -> InputStatistics:
        """Of the same rows with every input divided by its factor."""
        return InputStatistics(
            self.hessian / factors[:, None] / factors, np.asarray(self.peak / np.abs(factors)), np.asarray(self.sample / factors)
        )

    def reordered(self, order: npt.NDArray[np.int64]) -> InputStatistics:
        """Of the same rows with their inputs in another order."""
        return InputStatistics(self.hessian[np.ix_(order, order)], self.peak[order], self.sample[:, order])


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """Of one layer: its four kinds of inputs (``qkv``, ``o``, ``gate_up``, ``down``) and each key channel's peak.

    ``key_peak``: [kv_heads, head_dim], after rotary positions.
    """

    inputs: dict[str, InputStatistics]
    key_peak: Float32
