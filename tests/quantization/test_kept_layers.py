"""Whole models that keep a 4-bit source's codes, with other kinds beside them; and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from nibble_matrices import nibble_matrix
from tiny_sources import CONFIGS, random_source, random_windows

from headrace.errors import HeadraceError
from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig
from headrace.models.nibble_groups import nibble_groups
from headrace.models.weights import NO_BYTES, RawTensor, WeightSource, dequantise
from headrace.quantization.job import quantise
from headrace.quantization.model import Source
from headrace.quantization.recipe import Recipe, parse_recipe

RECIPE = Recipe(32, "16", (), own_codes=True)
HIDDEN, INNER = 256, 512
NOTHING = random_windows(1, 8)[:0]


@dataclass(frozen=True)
class NibbleWeights:
    """Tensors of any kind by name."""

    tensors: dict[str, RawTensor]
    size_bytes: int = 0

    def names(self) -> Iterable[str]:
        return self.tensors.keys()

    def tensor(self, name: str) -> RawTensor:
        return self.tensors[name]

    def outline(self, name: str) -> RawTensor:
        return replace(self.tensors[name], data=NO_BYTES)

    def release(self) -> None:
        """Arrays stay."""


def floats(values: np.ndarray) -> RawTensor:
    return RawTensor("F32", values.shape, np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8))


def small_model() -> Source:
    """One layer; v in floats, which takes q and k to 8 bits, too."""
    rng = np.random.default_rng(1)
    attention = AttentionSpec(heads=4, kv_heads=2, head_dim=64, scale=0.125, rope_theta=1e4)
    config = ModelConfig("llama", HIDDEN, 96, 256, 1e-5, (attention, MlpSpec(INNER, "silu")), tied_head=True)
    tensors = {name: floats(rng.standard_normal(HIDDEN)) for name in ("final_norm", "layer.0.attention.norm", "layer.0.mlp.norm")}
    tensors["embedding"] = floats(rng.standard_normal((96, HIDDEN)))
    tensors["layer.0.attention.v"] = floats(rng.standard_normal((128, HIDDEN)))
    for name, kind, rows, inputs in (
        ("attention.q", "Q4_K", 256, HIDDEN), ("attention.k", "Q4_K", 128, HIDDEN), ("attention.o", "Q4_1", HIDDEN, 256),
        ("mlp.gate", "Q4_0", INNER, HIDDEN), ("mlp.up", "Q4_1", INNER, HIDDEN), ("mlp.down", "Q4_K", HIDDEN, INNER),
    ):  # fmt: skip
        tensors[f"layer.0.{name}"] = nibble_matrix(kind, rows, inputs, rng)
    weights: WeightSource = NibbleWeights(tensors)
    return Source(config, weights)


def test_codes_stay_where_the_source_has_them_and_the_rest_takes_8_bits() -> None:
    source = small_model()
    made = quantise(source, RECIPE, NOTHING)
    layer = made.layers[0]
    assert {name: codes.grid.group for name, codes in layer.matrices.items()} == {
        "attention.q": 0, "attention.k": 0, "attention.v": 0,
        "attention.o": 32, "mlp.gate": 32, "mlp.up": 32, "mlp.down": 32,
    }  # fmt: skip
    for name, codes in layer.matrices.items():
        raw = source.weights.tensor(f"layer.0.{name}")
        values = dequantise(raw)
        assert np.square(codes.values() - values).sum() < 0.01**2 * np.square(values).sum()
        if codes.grid.group:
            own = nibble_groups(raw)
            assert np.array_equal(codes.codes, np.where(np.repeat(own.scales < 0, 32, axis=1), 15 - own.codes, own.codes))
    assert sorted(layer.vectors) == ["attention.norm", "mlp.norm"]
    assert {matrix.name: matrix.activation_bits for matrix in made.matrices()}["layer.0.mlp.down"] == 16


def test_what_has_no_codes_and_what_would_change_them_is_refused() -> None:
    with pytest.raises(HeadraceError, match="this model has none"):
        quantise(random_source("llama"), RECIPE, NOTHING)
    with pytest.raises(HeadraceError, match="takes no steps"):
        parse_recipe("source", "16", "gptq", CONFIGS["llama"])
    assert parse_recipe("source", "16", "auto", CONFIGS["llama"]) == RECIPE
    assert not RECIPE.calibrated
