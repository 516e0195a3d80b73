"""Every transform leaves the fp32 logits of every family as they are, and does what it is for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tiny_sources import CONFIGS, ROTATABLE, changed, random_source, random_windows

from headrace.errors import HeadraceError
from headrace.evaluation.quality import window_logits
from headrace.models.config import AttentionSpec
from headrace.quantization.hadamard import rotation
from headrace.quantization.model import Source
from headrace.quantization.smoothing import key_factors
from headrace.quantization.transforms import (
    Float32,
    Layer,
    fold_gains,
    reorder_inner,
    rotate_heads,
    rotate_layer,
    scale_inner,
    scale_keys,
    scale_normed,
    scale_values,
)

pytestmark = pytest.mark.torch
Change = Callable[[Layer, AttentionSpec], Layer]


def logits(source: Source) -> Float32:
    from headrace.kernels.torch_chain import TorchChain

    chain = TorchChain(source.config, source.weights, kv="fp32")
    return np.concatenate([np.array(piece) for piece in window_logits(chain, random_windows(1, 50)[0])])


def assert_same(source: Source, other: Source) -> None:
    expected, actual = logits(source), logits(other)
    assert np.abs(expected).max() > 1
    assert np.abs(expected - actual).max() < 2e-4 * np.abs(expected).max()


def every_layer(source: Source, change: Change) -> dict[str, Float32]:
    made: dict[str, Float32] = {}
    for index, spec in enumerate(source.config.attention_blocks):
        before = source.layer(index)
        kept = {name: values.copy() for name, values in before.items()}
        after = change(before, spec)
        assert all(np.array_equal(before[name], kept[name]) for name in kept), "a transform changed its argument"
        assert any(not np.array_equal(after[name], kept[name]) for name in kept), "a transform did nothing"
        made |= {f"layer.{index}.{name}": values for name, values in after.items()}
    return made


def positive(*shape: int) -> Float32:
    return np.exp(np.random.default_rng(7).standard_normal(shape)).astype(np.float32)


def smooth_keys(layer: Layer, spec: AttentionSpec) -> Layer:
    return scale_keys(layer, spec, key_factors(positive(spec.kv_heads, spec.head_dim), shared=spec.qk_norm))


CHANGES: dict[str, Change] = {
    "fold_gains": lambda layer, _: fold_gains(layer),
    "rotate_heads": lambda layer, spec: rotate_heads(layer, spec, rotation(spec.head_dim, seed=2)),
    "scale_keys": smooth_keys,
    "reorder_inner": lambda layer, _: reorder_inner(layer, np.random.default_rng(3).permutation(96)),
    "scale_inner": lambda layer, _: scale_inner(layer, positive(96)),
    "scale_values": lambda layer, spec: scale_values(layer, spec, positive(spec.kv_heads, spec.head_dim)),
    "scale_normed": lambda layer, _: scale_normed(scale_normed(layer, "attention.norm", positive(64)), "mlp.norm", positive(64)),
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("change", CHANGES)
def test_logits_stay(family: str, change: str) -> None:
    source = random_source(family)
    assert_same(source, changed(source, every_layer(source, CHANGES[change])))


@pytest.mark.parametrize("family", ROTATABLE)
def test_logits_stay_on_a_rotated_stream(family: str) -> None:
    source = random_source(family)
    turn = rotation(64, seed=4)
    embedding = source.tensor("embedding")
    head = embedding if source.config.tied_head else source.tensor("head")
    ends = {
        "embedding": embedding @ turn,
        "head": head * source.tensor("final_norm") @ turn,
        "final_norm": np.ones(64, np.float32),
    }
    layers = every_layer(source, lambda layer, _: rotate_layer(fold_gains(layer), turn))
    assert_same(source, changed(source, layers | ends, tied=False))


def test_a_stream_between_norms_is_not_rotated() -> None:
    with pytest.raises(HeadraceError, match="norms behind its blocks"):
        rotate_layer(fold_gains(random_source("gemma3").layer(0)), rotation(64))


def test_gains_must_be_folded_first() -> None:
    with pytest.raises(HeadraceError, match="folded"):
        rotate_layer(random_source("llama").layer(0), rotation(64))


def test_factors_that_would_not_commute_are_refused() -> None:
    source = random_source("qwen3")
    spec = source.config.attention_blocks[0]
    with pytest.raises(HeadraceError, match="pairs must share"):
        scale_keys(source.layer(0), spec, positive(2, 32))
    halves = positive(2, 16)
    with pytest.raises(HeadraceError, match="share its factors"):
        scale_keys(source.layer(0), spec, np.concatenate((halves, halves), axis=1))


def test_a_forgotten_bias_would_show() -> None:
    source = random_source("qwen2")
    layer = every_layer(source, smooth_keys)
    forgotten = {name: source.tensor(name) if name.endswith("k_bias") else values for name, values in layer.items()}
    with pytest.raises(AssertionError):
        assert_same(source, changed(source, forgotten))
