"""A model's weights in other formats, made in memory by plain rounding: for measuring speed, where the loss does not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace.models.quantised_matrix import QuantisedMatrix
from headrace.models.weights import RawTensor, WeightSource, dequantise

Float32 = npt.NDArray[np.float32]

_LARGEST_CODE, _LARGEST_INTEGER = 15, 127
_BOUND = 120  # of first-level integers, so that the second level stays in int8 (QServe's protective range, zeros of 8 bits)
_HEAD_BITS = 16  # of the rows that meet the head, as in models that headrace quantises

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
    """Codes of 8 bits, one scale an output channel, rows of 8 bits."""
    return _bytes(name, values, _HEAD_BITS if name in ("embedding", "head") else 8)


def as_4bit(name: str, values: Float32) -> RawTensor:
    """QServe's progressive groups of 64: 4-bit codes of 8-bit integers, rows of 8 bits; embedding and head keep 8 bits."""
    if name in ("embedding", "head"):
        return _bytes(name, values, _HEAD_BITS)
    rows, inputs = values.shape
    group = 64 if inputs % 64 == 0 else 32
    scales = np.maximum(np.abs(values).max(axis=1), np.float32(1e-20)) / np.float32(_BOUND)
    integers = np.rint(values / scales[:, None]).astype(np.int32).reshape(rows, -1, group)
    low, high = integers.min(axis=2), integers.max(axis=2)
    steps = np.maximum(1, np.rint((high - low) / _LARGEST_CODE)).astype(np.int32)
    codes = (
        np.clip(np.rint((integers - low[..., None]) / steps[..., None]), 0, _LARGEST_CODE).astype(np.uint8).reshape(rows, inputs)
    )
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    return QuantisedMatrix(name, packed, steps.astype(np.uint8), (-low).astype(np.int16), scales, group, 8).encode()


def _bytes(name: str, values: Float32, activation_bits: int) -> RawTensor:
    scales = np.maximum(np.abs(values).max(axis=1), np.float32(1e-20)) / np.float32(_LARGEST_INTEGER)
    codes = np.rint(values / scales[:, None]).astype(np.int8)
    return QuantisedMatrix(name, codes, None, None, scales, 0, activation_bits).encode()


def plain(source: WeightSource) -> Reencoded:
    """The source's own values in fp32."""
    return Reencoded(source, as_fp32)
