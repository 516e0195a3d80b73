"""Quantised matrices and whole quantised folders from random integers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.models.config import ModelConfig
from headrace.models.families import expected_tensors
from headrace.models.integer_rows import kind_name
from headrace.models.quantised_matrix import QuantisationInfo, QuantisedMatrix
from headrace.models.weights import NO_BYTES, RawTensor, WeightSource, dequantise
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


class RoundedWeights:
    """A weight source with its matrices rounded to integer codes on the spot: blocks in groups, ends (or ``group`` 0) in 8 bits."""

    def __init__(self, source: WeightSource, group: int, activation_bits: int) -> None:
        self._source, self._group, self._bits = source, group, activation_bits

    @property
    def size_bytes(self) -> int:
        return self._source.size_bytes

    def names(self) -> Iterable[str]:
        return self._source.names()

    def outline(self, name: str) -> RawTensor:
        outline = self._source.outline(name)
        if len(outline.shape) != 2:
            return outline
        return RawTensor(kind_name(self._group_of(name), self._bits), outline.shape, NO_BYTES)

    def tensor(self, name: str) -> RawTensor:
        raw = self._source.tensor(name)
        if len(raw.shape) != 2:
            return raw
        return round_matrix(name, dequantise(raw), self._group_of(name), self._bits).encode()

    def release(self) -> None:
        self._source.release()

    def _group_of(self, name: str) -> int:
        return 0 if name in ("embedding", "head") else self._group


def round_matrix(name: str, values: npt.NDArray[np.float32], group: int, activation_bits: int) -> QuantisedMatrix:
    """Two-level rounding to nearest: channels to ±119 (±127 with ``group`` 0), then groups of these integers to 4 bits."""
    peak = 119 if group else 127
    scales = (np.abs(values).max(axis=1) / np.float32(peak)).astype(np.float32)
    whole = np.rint(values / np.where(scales > 0, scales, 1)[:, None])
    if not group:
        return QuantisedMatrix(name, whole.astype(np.int8), None, None, scales, 0, activation_bits)
    rows, inputs = values.shape
    padded = np.pad(whole, ((0, 0), (0, -inputs % group)), mode="edge").reshape(rows, -1, group)
    low, high = padded.min(axis=2), padded.max(axis=2)
    steps = np.maximum(1, np.rint((high - low) / 15))
    codes = np.clip(np.rint((padded - low[..., None]) / steps[..., None]), 0, 15).astype(np.uint8).reshape(rows, -1)[:, :inputs]
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    return QuantisedMatrix(name, packed, steps.astype(np.uint8), (-low).astype(np.int16), scales, group, activation_bits)
