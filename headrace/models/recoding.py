"""What a model's matrices become when it is loaded: their own codes, or others that ``--weights`` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.models.integer_rows import GROUP_OF_KIND
from headrace.models.weights import BYTE_ROWS, RawBytes, RawTensor, WeightSource, dequantise

ROW_CHOICES = ("a16", "a8")
AUTO_ROWS = "a16"
"""What ``auto`` means: no loss that real text shows. ``a8`` is 1.4 to 1.5 times as fast for 0.003 nats (docs/weights.md)."""
WEIGHTS = ("auto", *ROW_CHOICES, "w4", "w8", "bf16")
GROUP = 32

Float32 = npt.NDArray[np.float32]

_FLOATS = ("F32", "F16", "BF16")
_KINDS = {"w4": "Q4_1", "w8": "Q8_0", "bf16": "BF16"}
# Already what is asked for: their codes run as they are, and rounding them onto another grid would only lose.
_KEPT = {"w4": ("Q4_0", "Q4_1", "Q4_K"), "w8": ("Q8_0",), "bf16": ("BF16",)}
# Encodings whose products can take rows of 8 bits as well.
_WITH_BYTE_ROWS = ("Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0")
_PIECE = 1 << 22  # weights encoded together


def encode_q8(values: Float32) -> RawBytes:
    """Groups of 32 as an fp16 scale and 8-bit codes: value = scale · code, rounded to nearest."""
    groups = values.reshape(-1, GROUP)
    scale = (np.abs(groups).max(axis=1) / np.float32(127)).astype("<f2")
    wide = scale.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide > 0)
    codes = np.clip(np.rint(groups * inverse[:, None]), -127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8).reshape(-1, 2), codes.view(np.uint8)], axis=1).reshape(-1)


def encode_q4(values: Float32) -> RawBytes:
    """Groups of 32 as fp16 scale, fp16 minimum and 4-bit codes: value = scale · code + minimum, rounded to nearest."""
    groups = values.reshape(-1, GROUP)
    low = groups.min(axis=1)
    scale, least = ((groups.max(axis=1) - low) / np.float32(15)).astype("<f2"), low.astype("<f2")
    wide = scale.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide > 0)
    codes = np.clip(np.rint((groups - least.astype(np.float32)[:, None]) * inverse[:, None]), 0, 15).astype(np.uint8)
    packed = codes[:, : GROUP // 2] | codes[:, GROUP // 2 :] << 4
    head = np.stack([scale, least], axis=1).view(np.uint8)
    return np.concatenate([head, packed], axis=1).reshape(-1)


def encode_bf16(values: Float32) -> RawBytes:
    """Upper halves of the float32 words, rounded to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(-1)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16).astype("<u2").view(np.uint8)


_ENCODERS: dict[str, Callable[[Float32], RawBytes]] = {"Q4_1": encode_q4, "Q8_0": encode_q8, "BF16": encode_bf16}


@dataclass(frozen=True, slots=True, eq=False)
class RecodedWeights:
    """A source whose matrices are given in other kinds (a :class:`~headrace.models.weights.WeightSource`); see :func:`recode`."""

    source: WeightSource
    kinds: dict[str, str]

    @property
    def size_bytes(self) -> int:
        """Encoded bytes of all tensors of the source, as its file has them."""
        return self.source.size_bytes

    def names(self) -> Iterable[str]:
        """Canonical names, in file order."""
        return self.source.names()

    def outline(self, name: str) -> RawTensor:
        """Kind and shape of a tensor without its bytes."""
        outline = self.source.outline(name)
        return replace(outline, kind=self.kinds[name], row_order=None) if name in self.kinds else outline

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name, encoded anew when it is one of those."""
        raw = self.source.tensor(name)
        return recode_tensor(raw, self.kinds[name]) if name in self.kinds else raw

    def release(self) -> None:
        """Let the source's files go."""
        self.source.release()


@dataclass(frozen=True, slots=True, eq=False)
class ByteRowWeights:
    """A source whose quantised matrices meet rows of 8 bits with a scale every 32 inputs (a
    :class:`~headrace.models.weights.WeightSource`): the same bytes under the kinds that say so."""

    source: WeightSource

    @property
    def size_bytes(self) -> int:
        """Encoded bytes of all tensors of the source."""
        return self.source.size_bytes

    def names(self) -> Iterable[str]:
        """Canonical names, in file order."""
        return self.source.names()

    def outline(self, name: str) -> RawTensor:
        """Kind and shape of a tensor without its bytes."""
        return _with_byte_rows(self.source.outline(name))

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name, its bytes as they are."""
        return _with_byte_rows(self.source.tensor(name))

    def release(self) -> None:
        """Let the source's files go."""
        self.source.release()


def _with_byte_rows(raw: RawTensor) -> RawTensor:
    return replace(raw, kind=raw.kind + BYTE_ROWS) if raw.kind in _WITH_BYTE_ROWS else raw


def recode_tensor(raw: RawTensor, kind: str) -> RawTensor:
    """The same matrix in another kind, rounded to nearest; rows in canonical order."""
    rows, inputs = raw.shape
    encode, step = _ENCODERS[kind], max(1, _PIECE // inputs)
    stored, parts = raw.data.reshape(rows, raw.row_bytes), []
    for first in range(0, rows, step):
        chosen = stored[first : first + step] if raw.row_order is None else stored[raw.row_order[first : first + step]]
        piece = RawTensor(raw.kind, (len(chosen), inputs), np.ascontiguousarray(chosen).reshape(-1))
        values = dequantise(piece)
        if not np.isfinite(values).all():
            raise HeadraceError("model_file", "a weight or scale is infinite or not a number")
        parts.append(encode(values))
    return RawTensor(kind, raw.shape, np.concatenate(parts))


def recode(source: WeightSource, weights: str) -> WeightSource:
    """The source as the option ``weights`` wants its matrices.

    ``a16``: as they are, but floats of inputs in whole groups become w8 (half the bytes, several times the speed, and a loss
    that real text hardly shows). ``a8``: the same codes, but rows of 8 bits with a scale every 32 inputs. ``auto``:
    :data:`AUTO_ROWS`; a runner in floats sees no difference. ``w8``, ``w4``: 8 or 4 bits in groups of 32; under w4 a matrix
    that has such codes keeps them. ``bf16``: dequantised. Raises ``invalid_setting`` for what can't be or would undo a
    calibration.
    """
    weights = AUTO_ROWS if weights == "auto" else weights
    kinds: dict[str, str] = {}
    for name in source.names():
        outline = source.outline(name)
        if len(outline.shape) != 2:
            continue
        if weights in ROW_CHOICES:
            if outline.kind in _FLOATS and outline.shape[1] % GROUP == 0:
                kinds[name] = _KINDS["w8"]
            continue
        _check(name, outline, weights)
        if outline.kind not in _KEPT[weights]:
            kinds[name] = _KINDS[weights]
    recoded = RecodedWeights(source, kinds) if kinds else source
    byte_rows = weights == "a8" and any(recoded.outline(name).kind in _WITH_BYTE_ROWS for name in recoded.names())
    return ByteRowWeights(recoded) if byte_rows else recoded


def _check(name: str, outline: RawTensor, weights: str) -> None:
    if weights == "bf16":
        return
    if outline.kind in GROUP_OF_KIND:
        message = f"weights {weights} would round codes again that `headrace quantize` has chosen; use auto or bf16"
        raise HeadraceError("invalid_setting", message, param="weights")
    if outline.shape[1] % GROUP:
        message = f"weights {weights} needs groups of {GROUP} inputs, {name} has {outline.shape[1]}; use auto or bf16"
        raise HeadraceError("invalid_setting", message, param="weights")
