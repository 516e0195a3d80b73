"""Weights as their file holds them: raw bytes with a kind and a shape, under the canonical names of ModelConfig."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.models.integer_rows import GROUP_OF_KIND, decode_rows

RawBytes = npt.NDArray[np.uint8]
RowOrder = npt.NDArray[np.int32]
NO_BYTES: RawBytes = np.zeros(0, np.uint8)
BYTE_ROWS = "A8"
"""Ends the name of an encoding whose matrix is to meet rows of 8 bits; its bytes are those of the encoding without it."""


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """One tensor in its source encoding, not copied: ``data`` is a view into the mapped file wherever possible.

    ``kind``: name of the encoding in the GGUF tables (``"F32"``, ``"F16"``, ``"BF16"``, ``"Q4_1"``, ``"Q8_0"``, …), perhaps with
    :data:`BYTE_ROWS` behind it.
    ``shape``: ``(outputs, inputs)`` or ``(n,)``, row-major, one row's codes consecutive.
    ``data``: 1-D bytes of exactly the encoded size; read-only when it maps a file.
    ``row_order``: output row *i* comes from stored row ``row_order[i]`` (``None``: as stored).
    """

    kind: str
    shape: tuple[int, ...]
    data: RawBytes
    row_order: RowOrder | None = None

    @property
    def rows(self) -> int:
        """Rows of a matrix; 1 for a vector."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        """Encoded bytes of one stored row."""
        return self.data.size // self.rows


class WeightSource(Protocol):
    """Where a model's tensors come from, by canonical name (``embedding``, ``layer.0.attention.q``, …)."""

    @property
    def size_bytes(self) -> int:
        """Encoded bytes of all tensors together."""

    def names(self) -> Iterable[str]:
        """Every name that :meth:`tensor` knows, in file order."""

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name; :class:`HeadraceError` ``model_file`` when the file has none."""

    def outline(self, name: str) -> RawTensor:
        """The tensor of that name without its bytes (``data`` is empty): cheap, whatever :meth:`tensor` has to do."""

    def release(self) -> None:
        """Say that the tensors won't be read soon: their files leave this process's memory until they are."""


def dequantise(raw: RawTensor) -> npt.NDArray[np.float32]:
    """The tensor's values as float32 in canonical row order, a writable array: slow and exact, an oracle for kernels.

    Raises ``model_file`` for a kind that the tables cannot decode.
    """
    stored = raw.data.reshape(raw.rows, raw.row_bytes)
    if raw.kind in GROUP_OF_KIND:
        integers, scales = decode_rows(raw.kind, stored, raw.shape[1])
        values = integers.astype(np.float32) * scales[:, None]
        return values if raw.row_order is None else values[raw.row_order]
    floats = _floats(raw.kind, stored)
    values = floats if floats is not None else _decoded(raw.kind, stored)
    if raw.row_order is not None:
        values = values[raw.row_order]
    return np.require(values, np.float32, ["C", "W"]).reshape(raw.shape)


def _floats(kind: str, stored: RawBytes) -> npt.NDArray[np.float32] | None:
    """Values of the kinds that are numbers already; ``None`` for the others."""
    if kind == "F32":
        return stored.view("<f4")
    if kind == "F16":
        return stored.view("<f2").astype(np.float32)
    if kind == "BF16":
        return (stored.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return None


def _decoded(kind: str, stored: RawBytes) -> npt.NDArray[np.float32]:
    import gguf  # 0.1 s to import, and a server that starts from packed weights needs none of it

    try:
        encoding = gguf.GGMLQuantizationType[kind.removesuffix(BYTE_ROWS)]
        values: npt.NDArray[np.float32] = gguf.quants.dequantize(stored, encoding)
    except (KeyError, NotImplementedError) as error:
        raise HeadraceError("model_file", f"weights of kind {kind!r} can't be decoded") from error
    return values
