"""Quantised matrices and whole quantised folders from random integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headrace.models.config import ModelConfig
from headrace.models.families import expected_tensors
from headrace.models.quantised_matrix import QuantisationInfo, QuantisedMatrix
from headrace.quantization.format import write_model


def random_matrix(name: str, shape: tuple[int, int], group: int, activation_bits: int = 8, *, seed: int = 0) -> QuantisedMatrix:
    """Random codes; ``group`` 0 gives 8-bit codes. Integer weights stay near int8, channel scales make values near 1."""
    rng = np.random.default_rng([seed, *shape, group])
    rows, inputs = shape
    scales = rng.uniform(0.5, 2.0, rows).astype(np.float32) / np.float32(64.0 * inputs**0.5)
    if not group:
        codes8 = rng.integers(-128, 128, shape, dtype=np.int8)
        return QuantisedMatrix(name, codes8, None, None, scales, 0, activation_bits)
    codes = rng.integers(0, 256, (rows, inputs // 2), dtype=np.uint8)
    group_scales = rng.integers(1, 18, (rows, -(-inputs // group)), dtype=np.uint8)
    zeros = (group_scales * 7 + rng.integers(0, 8, group_scales.shape)).astype(np.int16)
    return QuantisedMatrix(name, codes, group_scales, zeros, scales, group, activation_bits)


def write_random_model(folder: Path, config: ModelConfig, group: int, activation_bits: int) -> Path:
    """A whole model of random matrices; ends in 8 bits, blocks in 4 (``group`` 0: all in 8)."""
    matrices, vectors = [], {}
    for index, (name, shape) in enumerate(expected_tensors(config).items()):
        if len(shape) == 1:
            vectors[name] = np.random.default_rng(index).uniform(0.5, 1.5, shape[0]).astype(np.float32)
        else:
            own = 0 if name in ("embedding", "head") else group
            matrices.append(random_matrix(name, (shape[0], shape[1]), own, activation_bits, seed=index))
    write_model(folder, config, QuantisationInfo("random", group, activation_bits, "00"), matrices, vectors)
    return folder
