"""Random GGUF blocks and what they mean, taken apart with the gguf package alone: the slow oracle of packing and products."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# kind: (block inputs, block bytes, group, byte offset of fp16 d, byte offset of fp16 minimum or None)
LAYOUT: dict[str, tuple[int, int, int, int, int | None]] = {
    "Q8_0": (32, 34, 32, 0, None),
    "Q4_0": (32, 18, 32, 0, None),
    "Q4_1": (32, 20, 32, 0, 2),
    "Q5_0": (32, 22, 32, 0, None),
    "Q5_1": (32, 24, 32, 0, 2),
    "Q4_K": (256, 144, 32, 0, 2),
    "Q6_K": (256, 210, 16, 208, None),
}
FLOATS: dict[str, int] = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Meaning:
    """value[n, k] = d[n, g] · codes[n, k] (+ m[n, g])."""

    codes: Int64
    d: Float32
    m: Float32 | None
    group: int


def dequantise(raw: Bytes, kind: str, rows: int) -> Float32:
    values = gguf.quants.dequantize(raw.reshape(rows, -1), gguf.GGMLQuantizationType[kind])
    return np.ascontiguousarray(values, np.float32)


def put_half(blocks: Bytes, offset: int, values: npt.NDArray[np.generic]) -> None:
    blocks[..., offset : offset + 2] = values.astype(np.float16)[..., None].view(np.uint8)


def random_blocks(kind: str, rows: int, inputs: int, rng: np.random.Generator) -> Bytes:
    """Raw bytes of a matrix: codes and sub-scales uniformly random, fp16 scales of the size that models have."""
    if kind in FLOATS:
        values = rng.normal(size=(rows, inputs)).astype(np.float32)
        if kind == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).reshape(-1).view(np.uint8)
        return values.astype(np.float16 if kind == "F16" else np.float32).reshape(-1).view(np.uint8)
    block, size, _, at_d, at_m = LAYOUT[kind]
    blocks = rng.integers(0, 256, (rows, inputs // block, size), dtype=np.uint8)
    for offset in (at_d, at_m):
        if offset is not None:
            put_half(blocks, offset, rng.normal(size=blocks.shape[:2]) * 0.01)
    return blocks.reshape(-1)


def take_apart(raw: Bytes, kind: str, rows: int) -> Meaning:
    """Codes and per-group scales, each read by dequantising with the other parts set to one or zero."""
    block, size, group, at_d, at_m = LAYOUT[kind]
    blocks = raw.reshape(rows, -1, size)
    unit = blocks.copy()
    put_half(unit, at_d, np.ones(blocks.shape[:2]))
    if at_m is not None:
        put_half(unit, at_m, np.zeros(blocks.shape[:2]))
    if kind == "Q4_K":
        unit[..., 4:16] = np.array([1] * 4 + [0] * 4 + [1] * 4, np.uint8)
    if kind == "Q6_K":
        unit[..., 192:208] = 1
    codes = dequantise(unit, kind, rows).astype(np.int64)
    repeat = block // group
    d = np.repeat(blocks[..., at_d : at_d + 2].copy().view(np.float16)[..., 0], repeat, axis=1).astype(np.float32)
    m: Float32 | None = None
    if kind == "Q4_0":
        codes, m = codes + 8, -8 * d
    elif kind == "Q4_K":
        d, m = _sub_scales(blocks, rows)
    elif kind == "Q6_K":
        d = (d * blocks[..., 192:208].view(np.int8).reshape(rows, -1)).astype(np.float16).astype(np.float32)
    elif at_m is not None:
        m = blocks[..., at_m : at_m + 2].copy().view(np.float16)[..., 0].astype(np.float32)
    return Meaning(codes, d, m, group)


def _sub_scales(blocks: Bytes, rows: int) -> tuple[Float32, Float32]:
    ones, zeros = blocks.copy(), blocks.copy()
    ones[..., 16:] = 0x11
    put_half(ones, 2, np.zeros(blocks.shape[:2]))
    zeros[..., 16:] = 0
    d, m = (dequantise(part, "Q4_K", rows)[:, ::32].astype(np.float16).astype(np.float32) for part in (ones, zeros))
    return d, m


def fma(a: Float32, b: Float32, c: Float32) -> Float32:
    """a·b + c rounded once: exact product, sum in float64 rounded to odd, which a second rounding can't spoil."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    even = (error != 0) & (bits & 1 == 0)
    bits = np.where(even, np.where((error > 0) == (total > 0), bits + 1, bits - 1), bits)
    return bits.view(np.float64).astype(np.float32)


def quantise_rows(x: Float32, top: int = 32512) -> tuple[Int64, Float32]:
    """Codes up to ``top`` (16 bits) and scale of each row, as the kernels define them."""
    peak = np.abs(x).max(axis=1, keepdims=True)
    live = peak > 1e-30
    safe = np.where(live, peak, np.float32(1))
    codes = np.where(live, np.rint(x * (np.float32(top) / safe)), 0).astype(np.int64)
    return codes, np.where(live, peak / np.float32(top), 0).astype(np.float32)


def product(x: Float32, meaning: Meaning) -> Float32:
    """x · Wᵀ with the kernels' order: groups ascending, d before m, fp32 fma, the row's scale last."""
    codes, scale = quantise_rows(x)
    acc = np.zeros((x.shape[0], meaning.codes.shape[0]), np.float32)
    for g in range(meaning.codes.shape[1] // meaning.group):
        span = slice(g * meaning.group, (g + 1) * meaning.group)
        dots = codes[:, span] @ meaning.codes[:, span].T
        assert np.abs(dots).max(initial=0) < 2**31
        acc = fma(np.broadcast_to(meaning.d[:, g], acc.shape), dots.astype(np.float32), acc)
        if meaning.m is not None:
            sums = np.broadcast_to(codes[:, span].sum(axis=1, keepdims=True).astype(np.float32), acc.shape)
            acc = fma(np.broadcast_to(meaning.m[:, g], acc.shape), sums, acc)
    return acc * scale


def quantise_groups(x: Float32) -> tuple[Int64, Float32]:
    """8-bit codes [rows, inputs] and the scale of every 32 inputs [rows, inputs / 32], as the kernels define them."""
    codes, scales = quantise_rows(x.reshape(-1, 32), 127)
    return codes.reshape(x.shape), scales.reshape(len(x), -1)


def grouped_product(x: Float32, meaning: Meaning) -> Float32:
    """:func:`product` for rows of 8 bits: the scale of a row's group goes in before the group's own."""
    codes, scales = quantise_groups(x)
    acc = np.zeros((x.shape[0], meaning.codes.shape[0]), np.float32)
    for g in range(meaning.codes.shape[1] // meaning.group):
        span, place = slice(g * meaning.group, (g + 1) * meaning.group), g * meaning.group // 32
        dots, scale = codes[:, span] @ meaning.codes[:, span].T, scales[:, place : place + 1]
        acc = fma(np.broadcast_to(meaning.d[:, g], acc.shape), dots.astype(np.float32) * scale, acc)
        if meaning.m is not None:
            sums = scale * codes[:, span].sum(axis=1, keepdims=True).astype(np.float32)
            acc = fma(np.broadcast_to(meaning.m[:, g], acc.shape), np.broadcast_to(sums, acc.shape), acc)
    return acc


def float_product(x: Float32, weights: Float32) -> Float32:
    """x · Wᵀ in fp32 with one fma an input, inputs ascending."""
    acc = np.zeros((x.shape[0], weights.shape[0]), np.float32)
    for k in range(x.shape[1]):
        acc = fma(np.broadcast_to(weights[:, k], acc.shape), np.broadcast_to(x[:, k : k + 1], acc.shape), acc)
    return acc
