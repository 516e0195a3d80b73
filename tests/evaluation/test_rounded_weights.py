"""Weights in other formats: near the source by as much as the format allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headrace.evaluation.rounded_weights import Encode, Reencoded, as_4bit, as_8bit, as_bf16, as_fp32, plain
from headrace.models.integer_rows import kind_name
from headrace.models.weights import RawTensor, dequantise


class OneMatrix:
    """A source of one matrix and one vector."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.size_bytes = values.nbytes
        self.released = False

    def names(self) -> list[str]:
        return ["layer.0.mlp.up", "final_norm"]

    def outline(self, name: str) -> RawTensor:
        return replace(self.tensor(name), data=np.empty(0, np.uint8))

    def release(self) -> None:
        self.released = True

    def tensor(self, name: str) -> RawTensor:
        return as_fp32(name, self.values if name.startswith("layer") else self.values[0])


@pytest.mark.parametrize(
    ("encode", "bits", "loss"), [(as_4bit, 4.5, 0.1), (as_8bit, 8.1, 0.01), (as_bf16, 16, 0.002), (as_fp32, 32, 0)]
)
def test_values_stay_near(encode: Encode, bits: float, loss: float) -> None:
    values = np.random.default_rng(0).standard_normal((48, 576), dtype=np.float32)
    matrix = OneMatrix(values)
    source = Reencoded(matrix, encode)
    raw = source.tensor("layer.0.mlp.up")
    error = dequantise(raw) - values
    assert np.sqrt(np.square(error).mean()) <= loss * np.sqrt(np.square(values).mean())
    assert loss == 0 or error.any()
    assert 8 * raw.data.size / values.size < bits * 1.02
    assert source.tensor("final_norm").kind == "F32"
    assert source.outline("layer.0.mlp.up").shape == raw.shape
    source.release()
    assert matrix.released


def test_head_and_embedding_keep_8_bits_and_wide_rows() -> None:
    values = np.random.default_rng(0).standard_normal((32, 64), dtype=np.float32)
    wide, narrow = kind_name(0, 16), kind_name(64, 8)
    assert [as_4bit(name, values).kind for name in ("embedding", "head", "layer.0.mlp.up")] == [wide, wide, narrow]
    assert [as_8bit(name, values).kind for name in ("head", "layer.0.mlp.up")] == [wide, kind_name(0, 8)]


def test_the_plain_source_is_the_source() -> None:
    values = np.random.default_rng(0).standard_normal((4, 64), dtype=np.float32)
    assert np.array_equal(dequantise(plain(OneMatrix(values)).tensor("layer.0.mlp.up")), values)
