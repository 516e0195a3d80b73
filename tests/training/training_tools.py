"""Tiny random models, samples and packs for tests of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig
from headrace.models.weights import NO_BYTES, RawTensor
from headrace.training.dataset_file import Sample
from headrace.training.parameters import Parameters
from headrace.training.units import Unit

VOCAB = 61


def tiny_config(**changes: Any) -> ModelConfig:
    attention = {"heads": 4, "kv_heads": 2, "head_dim": 8, "scale": 0.3, "rope_theta": 10_000.0} | changes
    post, activation = bool(changes.get("post_norm")), "gelu_tanh" if changes.get("qk_norm") else "silu"
    specs: list[AttentionSpec | MlpSpec] = []
    for layer in range(2):
        own = dict(attention)
        if layer:
            own["window"] = None
        specs += [AttentionSpec(**own), MlpSpec(48, activation, post)]  # type: ignore[arg-type]
    return ModelConfig("tiny", 32, VOCAB, 256, 1e-5, tuple(specs), embedding_scale=1.5)


class RandomWeights:
    """A weight source of random tensors."""

    def __init__(self, config: ModelConfig, seed: int = 1) -> None:
        draws = np.random.default_rng(seed)
        self._tensors = {
            name: (float(name.endswith("norm")) + draws.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
            for name, shape in _shapes(config).items()
        }

    @property
    def size_bytes(self) -> int:
        return sum(one.nbytes for one in self._tensors.values())

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> RawTensor:
        values = self._tensors[name]
        return RawTensor("F32", values.shape, values.view(np.uint8).reshape(-1))

    def outline(self, name: str) -> RawTensor:
        return RawTensor("F32", self._tensors[name].shape, NO_BYTES)

    def release(self) -> None:
        pass


def _shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    hidden, layer = config.hidden, -1
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab, hidden), "final_norm": (hidden,)}
    for spec in config.blocks:
        if isinstance(spec, AttentionSpec):
            layer += 1
            heads, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
            own = {"norm": (hidden,), "q": (heads, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, heads)}
            own |= {"q_bias": (heads,), "k_bias": (keys,), "v_bias": (keys,)} if spec.qkv_bias else {}
            own |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)} if spec.qk_norm else {}
            prefix = f"layer.{layer}.attention."
        else:
            inner = spec.inner
            own = {"norm": (hidden,), "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
            prefix = f"layer.{layer}.mlp."
        own |= {"post_norm": (hidden,)} if spec.post_norm else {}
        shapes |= {prefix + name: shape for name, shape in own.items()}
    return shapes


def random_sample(length: int, seed: int, learnt: float = 0.7) -> Sample:
    draws = np.random.default_rng(seed)
    weights = (draws.random(length) < learnt).astype(np.float32)
    weights[-1] = 1.0
    return Sample(draws.integers(0, VOCAB, length).astype(np.int32), weights)


def randomise(parameters: Parameters, seed: int = 3) -> None:
    """So that B is not zero and every gradient flows."""
    parameters.values[:] = 0.3 * np.random.default_rng(seed).standard_normal(len(parameters.values))


def run_all(units: Any) -> int:
    count = 0
    for unit in units:
        assert isinstance(unit, Unit)
        unit.run()
        count += 1
    return count
