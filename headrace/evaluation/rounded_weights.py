"""A model's weights in other formats, made in memory by plain rounding: for measuring speed, where the loss does not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace.models.weights import RawTensor, WeightSource, dequantise
from headrace.quantization.grid import Grid, channel_grid, progressive_grid
from headrace.quantization.layers import Codes
from headrace.quantization.model import HEAD_BITS, runtime_matrix

Float32 = npt.NDArray[np.float32]

_ENDS = ("embedding", "head")

Encode = Callable[[str, Float32], RawTensor]


@dataclass(frozen=True, slots=True, eq=False)
class Reencoded:
    """Another source's matrices as ``encode`` makes them, its vectors as they are (a :class:`WeightSource`)."""

    source: WeightSource
    encode: Encode

    @property
    def size_bytes(self) -> int:
        """Encoded bytes of the source."""
        return self.source.size_bytes

    def names(self) -> Iterable[str]:
        """The source's names."""
        return self.source.names()

    def tensor(self, name: str) -> RawTensor:
        """A matrix encoded anew, a vector as the source has it."""
        raw = self.source.tensor(name)
        return self.encode(name, dequantise(raw)) if len(raw.shape) == 2 else raw

    def outline(self, name: str) -> RawTensor:
        """The same without its bytes."""
        return replace(self.tensor(name), data=np.empty(0, np.uint8))

    def release(self) -> None:
        """Let go of the source's files."""
        self.source.release()


def as_fp32(name: str, values: Float32) -> RawTensor:
    """The values themselves: products with them take fp32 rows."""
    return RawTensor("F32", values.shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def as_bf16(name: str, values: Float32) -> RawTensor:
    """Rounded to bf16."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return RawTensor("BF16", values.shape, nearest.reshape(-1).view(np.uint8))


def as_8bit(name: str, values: Float32) -> RawTensor:
    """Codes of 8 bits, one scale an output channel, rows of 8 bits (16 before the head)."""
    return _rounded(name, values, channel_grid(values))


def as_4bit(name: str, values: Float32) -> RawTensor:
    """QServe's progressive groups: 4-bit codes of 8-bit integers, rows of 8 bits; embedding and head keep 8 bits."""
    if name in _ENDS:
        return as_8bit(name, values)
    return _rounded(name, values, progressive_grid(values, 64 if values.shape[1] % 64 == 0 else 32))


def _rounded(name: str, values: Float32, grid: Grid) -> RawTensor:
    return runtime_matrix(name, Codes(grid.round(values), grid), HEAD_BITS if name in _ENDS else 8).encode()


def plain(source: WeightSource) -> Reencoded:
    """The source's own values in fp32."""
    return Reencoded(source, as_fp32)
