"""Frozen matrices, and the two products that training needs of them: with rows, and with the rows' gradients."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.kernels._native import DenseMatrix, PackedMatrix
from headrace.training.arithmetic import Floats


class Frozen(Protocol):
    """A matrix [outputs, inputs] that is never changed. Ranges of outputs are whole panels of 16."""

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""

    def forward(self, x: Floats, first: int = 0, end: int | None = None, out: Floats | None = None) -> Floats:
        """x · W[first:end]ᵀ for x [T, inputs], into ``out`` if there is one."""

    def back(self, dy: Floats, first: int = 0, end: int | None = None, add_to: Floats | None = None) -> Floats:
        """dy · W[first:end] for dy [T, end − first]; added to ``add_to`` if there is one."""

    def rows(self, numbers: npt.NDArray[np.int32]) -> Floats:
        """These of its rows."""

    def values(self) -> Floats:
        """All of it, as one array: for oracles."""


class PlainMatrix:
    """A matrix in numpy's hands, in whatever float type it comes: the slow oracle of :class:`PackedProduct`."""

    def __init__(self, values: Floats) -> None:
        self._values = values

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        outputs, inputs = self._values.shape
        return outputs, inputs

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self._values.nbytes

    def forward(self, x: Floats, first: int = 0, end: int | None = None, out: Floats | None = None) -> Floats:
        """As :meth:`Frozen.forward`."""
        return np.asarray(np.matmul(x, self._values[first:end].T, out=out))

    def back(self, dy: Floats, first: int = 0, end: int | None = None, add_to: Floats | None = None) -> Floats:
        """As :meth:`Frozen.back`."""
        made: Floats = dy @ self._values[first:end]
        if add_to is None:
            return made
        add_to += made
        return add_to

    def rows(self, numbers: npt.NDArray[np.int32]) -> Floats:
        """As :meth:`Frozen.rows`."""
        return self._values[numbers]

    def values(self) -> Floats:
        """The array itself."""
        return self._values


class PackedProduct:
    """A packed matrix as it is served, by exactly the values that its codes stand for, in fp32.

    Codes are expanded block by block beside the product, which costs little of it and keeps an eighth of the memory of
    fp32 ("QLoRA: Efficient Finetuning of Quantized LLMs" dequantises likewise). Its sums have one order, whatever the number of
    rows and the instruction set.
    """

    def __init__(self, matrix: PackedMatrix) -> None:
        self.matrix, self._dense = matrix, DenseMatrix(matrix)
        starts = zip(matrix.column_starts, matrix.source_rows, strict=True)
        step = 32 if matrix.interleaved else 16
        places = [start + np.arange(rows) // 16 * step + np.arange(rows) % 16 for start, rows in starts]
        self._columns = np.concatenate(places).astype(np.int32)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self._dense.outputs, self._dense.inputs

    @property
    def nbytes(self) -> int:
        """Bytes of its codes."""
        return self.matrix.bytes

    def forward(self, x: Floats, first: int = 0, end: int | None = None, out: Floats | None = None) -> Floats:
        """As :meth:`Frozen.forward`."""
        end = self._dense.outputs if end is None else end
        made: npt.NDArray[np.float32] = np.empty((len(x), end - first), np.float32) if out is None else out
        self._dense.forward(x, made, first, end)
        return made

    def back(self, dy: Floats, first: int = 0, end: int | None = None, add_to: Floats | None = None) -> Floats:
        """As :meth:`Frozen.back`."""
        end = self._dense.outputs if end is None else end
        made: npt.NDArray[np.float32] = np.empty((len(dy), self._dense.inputs), np.float32) if add_to is None else add_to
        self._dense.backward(dy, made, first, end, add_to is not None)
        return made

    def rows(self, numbers: npt.NDArray[np.int32]) -> Floats:
        """As :meth:`Frozen.rows`."""
        return self.matrix.dequantize(self._columns[numbers])

    def values(self) -> Floats:
        """All of it, dequantised."""
        return self.matrix.dequantize(self._columns)
