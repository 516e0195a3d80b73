"""Random matrices in the 4-bit kinds of GGUF, with scales of both signs where the kind has them."""

from __future__ import annotations

import numpy as np

from headrace.models.weights import RawTensor

_HALVES = {"Q4_0": (18, 32, 1), "Q4_1": (20, 32, 2), "Q4_K": (144, 256, 2)}  # bytes and weights of a block, its fp16 numbers


def nibble_matrix(kind: str, rows: int, inputs: int, rng: np.random.Generator) -> RawTensor:
    """A matrix [rows, inputs]; inputs a multiple of 256."""
    size, block, halves = _HALVES[kind]
    blocks = rng.integers(0, 256, (rows * inputs // block, size), dtype=np.uint8)
    numbers = rng.uniform(0.001, 0.02, (len(blocks), halves)) * (
        rng.choice([-1, 1], (len(blocks), halves)) if kind != "Q4_K" else 1
    )
    blocks[:, : 2 * halves] = numbers.astype("<f2").view(np.uint8).reshape(len(blocks), -1)
    return RawTensor(kind, (rows, inputs), blocks.reshape(-1))
