"""Small random models of every family, with everything a transform could forget: gains, biases, windows, unequal channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig
from headrace.models.families import expected_tensors
from headrace.models.weights import NO_BYTES, RawTensor
from headrace.quantization.model import Source

Float32 = npt.NDArray[np.float32]
VOCAB = 96
_ATTENTION = AttentionSpec(heads=4, kv_heads=2, head_dim=32, scale=0.18, rope_theta=1e4)
_MLP = MlpSpec(96, "silu")


@dataclass(frozen=True)
class ArrayWeights:
    """A weight source of float32 arrays."""

    arrays: Mapping[str, Float32]

    @property
    def size_bytes(self) -> int:
        return sum(values.nbytes for values in self.arrays.values())

    def names(self) -> Iterable[str]:
        return self.arrays.keys()

    def tensor(self, name: str) -> RawTensor:
        values = np.ascontiguousarray(self.arrays[name])
        return RawTensor("F32", values.shape, values.reshape(-1).view(np.uint8))

    def outline(self, name: str) -> RawTensor:
        return replace(self.tensor(name), data=NO_BYTES)

    def release(self) -> None:
        """Arrays stay."""


def _config(family: str, attention: AttentionSpec, mlp: MlpSpec = _MLP, *, tied: bool = True) -> ModelConfig:
    blocks = (attention, mlp, replace(attention, window=None), mlp)
    return ModelConfig(family, 64, VOCAB, 256, 1e-5, blocks, embedding_scale=8.0 if family == "gemma3" else 1.0, tied_head=tied)


CONFIGS: dict[str, ModelConfig] = {
    "llama": _config("llama", _ATTENTION),
    "mistral": _config("mistral", replace(_ATTENTION, window=20), tied=False),
    "qwen2": _config("qwen2", replace(_ATTENTION, qkv_bias=True)),
    "qwen3": _config("qwen3", replace(_ATTENTION, qk_norm=True), tied=False),
    "gemma3": _config(
        "gemma3",
        AttentionSpec(4, 1, 32, 0.2, 1e4, window=20, qk_norm=True, post_norm=True),
        MlpSpec(96, "gelu_tanh", post_norm=True),
    ),
}
ROTATABLE = [name for name in CONFIGS if name != "gemma3"]


def random_source(family: str, seed: int = 0) -> Source:
    """Random weights; some inputs and some keys are far larger than the others, as in real models."""
    config = CONFIGS[family]
    rng = np.random.default_rng([seed, len(family)])
    arrays: dict[str, Float32] = {}
    for name, shape in expected_tensors(config).items():
        if len(shape) == 2:
            values = rng.standard_normal(shape) / np.sqrt(shape[1]) * 1.5
            if name.endswith((".k", ".up")):
                values *= np.exp(rng.standard_normal((shape[0], 1)))
        else:
            values = rng.standard_normal(shape) * 0.3
            values = np.exp(3 * values) if name.endswith((".norm", "k_norm")) else values + name.endswith("norm")
        arrays[name] = values.astype(np.float32)
    return Source(config, ArrayWeights(arrays))


def random_windows(count: int, tokens: int, seed: int = 1) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, VOCAB, (count, tokens)).astype(np.int32)


def changed(source: Source, arrays: Mapping[str, Float32], *, tied: bool | None = None) -> Source:
    """The source with some arrays replaced."""
    before = {name: source.tensor(name) for name in source.weights.names()}
    config = source.config if tied is None else replace(source.config, tied_head=tied)
    return Source(config, ArrayWeights(before | dict(arrays)))
