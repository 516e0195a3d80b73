"""The codes of 4-bit files as they are: groups of 32 nibbles with a scale and a minimum, without the rounding of a decoder.

Of GGUF's encodings these are ``Q4_0``, ``Q4_1`` and ``Q4_K``, whose blocks of 256 are eight such groups under two fp16 scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.models.weights import RawBytes, RawTensor

NIBBLE_KINDS = ("Q4_0", "Q4_1", "Q4_K")
"""Kinds whose weights are scale · nibble + minimum in groups of 32."""
GROUP = 32

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class NibbleGroups:
    """A matrix [N, K]: value[n, k] = scales[n, g] · codes[n, k] + minima[n, g], with g = k // 32.

    ``codes``: uint8 [N, K] from 0 to 15; ``scales``, ``minima``: float32 [N, K/32], of either sign.
    """

    codes: npt.NDArray[np.uint8]
    scales: Float32
    minima: Float32


def nibble_groups(raw: RawTensor) -> NibbleGroups:
    """Take a matrix of one of :data:`NIBBLE_KINDS` apart; rows in canonical order."""
    rows, inputs = raw.shape
    stored = raw.data.reshape(rows, raw.row_bytes)
    if raw.row_order is not None:
        stored = stored[raw.row_order]
    codes, scales, minima = _PARTS[raw.kind](np.ascontiguousarray(stored).reshape(-1, _BLOCK_BYTES[raw.kind]))
    return NibbleGroups(codes.reshape(rows, inputs), scales.reshape(rows, -1), minima.reshape(rows, -1))


_Parts = tuple[npt.NDArray[np.uint8], Float32, Float32]
_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q4_K": 144}


def _halves(columns: RawBytes) -> Float32:
    return np.ascontiguousarray(columns).view("<f2").astype(np.float32)


def _nibbles(packed: RawBytes) -> npt.NDArray[np.uint8]:
    """All low nibbles of a run of bytes, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _q4_0(blocks: RawBytes) -> _Parts:
    scales = _halves(blocks[:, :2])
    return _nibbles(blocks[:, 2:]), scales, np.float32(-8) * scales


def _q4_1(blocks: RawBytes) -> _Parts:
    return _nibbles(blocks[:, 4:]), _halves(blocks[:, :2]), _halves(blocks[:, 2:4])


def _q4_k(blocks: RawBytes) -> _Parts:
    """[fp16 scale][fp16 scale of minima][12 bytes: eight 6-bit scales and minima][128 bytes], 32 of which are two groups."""
    packed = blocks[:, 4:16]
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, rest & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, rest >> 4 | second >> 6 << 4], axis=1)
    codes = _nibbles(blocks[:, 16:].reshape(len(blocks), 4, GROUP))
    return codes, _halves(blocks[:, :2]) * scales, -(_halves(blocks[:, 2:4]) * minima)


_PARTS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k}
