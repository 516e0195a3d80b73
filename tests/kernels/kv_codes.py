"""Formats of keys and values in numpy, float step by float step: the oracle of the native writers and readers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from chain_tools import PAGE_TOKENS, from_bf16, to_bf16

from headrace.kernels.interface import KV_BITS, KvFormat

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def code(x: Float32, bits: int) -> tuple[Bytes, npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Codes [..., n] of vectors, and the bf16 patterns of their steps and middles [...]."""
    half, levels = np.float32(2 ** (bits - 1)), np.float32(2**bits - 1)
    least = x.min(-1)
    span = (x.max(-1) - least) / levels
    step = to_bf16(np.where(span > 1e-30, span, np.float32(0)))
    wide = from_bf16(step).astype(np.float64)
    middle = to_bf16((float(half) * wide + least).astype(np.float32))
    inverse = np.where(wide > 0, np.float32(1) / np.where(wide > 0, from_bf16(step), np.float32(1)), np.float32(0))
    scaled = (x - from_bf16(middle)[..., None]) * inverse[..., None].astype(np.float32)
    codes = np.rint(np.clip(scaled, -half, half - 1)) + half
    return codes.astype(np.uint8), step, middle


def decode(codes: Bytes, step: npt.NDArray[np.uint16], middle: npt.NDArray[np.uint16], bits: int) -> npt.NDArray[np.float64]:
    """The values that codes stand for."""
    centred = codes.astype(np.float64) - 2 ** (bits - 1)
    return np.asarray(centred * from_bf16(step)[..., None].astype(np.float64) + from_bf16(middle)[..., None])


def turn(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Vectors [..., n] times the orthonormal Hadamard matrix over blocks of the largest power of two in n, as butterflies."""
    size = x.shape[-1]
    block = size & -size
    out, stride = x.copy(), 1
    while stride < block:
        if stride == 16:
            out *= np.float32(1) / np.sqrt(np.float32(block))
        low, high = np.moveaxis(out.reshape(*x.shape[:-1], -1, 2, stride), -2, 0)
        out = np.stack([low + high, low - high], axis=-2).reshape(x.shape)
        stride *= 2
    return out


def stored(x: Float32, kv: KvFormat) -> npt.NDArray[np.float64]:
    """What vectors become by going into a page and out again."""
    if kv == "bf16":
        return from_bf16(to_bf16(x)).astype(np.float64)
    return turn(decode(*code(turn(x), KV_BITS[kv]), KV_BITS[kv]))


def write(head: Bytes, slot: int, key: Float32, value: Float32, kv: KvFormat) -> None:
    """One token's key and value into a head's part of a page."""
    width, bits = len(key), KV_BITS[kv]
    if kv == "bf16":
        cells = head.view(np.uint16).reshape(2, -1)
        cells[0].reshape(width, PAGE_TOKENS)[:, slot] = to_bf16(key)
        cells[1].reshape(PAGE_TOKENS, width)[slot] = to_bf16(value)
        return
    size = PAGE_TOKENS * width * bits // 8
    parameters = head[2 * size :].view(np.uint16).reshape(4, PAGE_TOKENS)
    codes, parameters[0, slot], parameters[1, slot] = code(turn(key), bits)
    lines = codes.reshape(width // 4, 4)  # K: line g holds dimensions 4g … 4g+3 of 16 tokens
    head[:size].reshape(-1, PAGE_TOKENS, 4)[:, slot] = lines if bits == 8 else lines[0::2] | lines[1::2] << 4
    codes, parameters[2, slot], parameters[3, slot] = code(turn(value), bits)
    vectors = codes.reshape(width // 16, 16)  # V: line (j, v) holds tokens 4j … 4j+3 of dimensions 16v … 16v+15
    place = head[size : 2 * size].reshape(PAGE_TOKENS // 4, -1, 16, 4)
    place[slot // 4, :, :, slot % 4] = vectors if bits == 8 else vectors[0::2] | vectors[1::2] << 4
