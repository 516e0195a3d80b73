"""How keys are made ready for few bits: measured once when a chain is built, the same for every request.

Keys differ far more between their channels than between tokens: each channel has a mean of its own, and some channels are
many times as wide as others. Two changes leave every weight of attention what it was. A vector added to all keys moves all
scores of a query by the same amount; and what a channel of the keys is multiplied by, the queries are divided by
(SmoothAttention in QServe, whose factors come from the keys alone). The factor here is the one that loses least when each
vector's codes have one step: the fourth root of the mean square of the queries over the variance of the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.kernels.interface import Float32, Int32, StepBatch
from headrace.models.config import AttentionSpec, ModelConfig

SAMPLE = 512  # tokens that are looked at
_FIRST_OCTAVE = 64  # ids
_STEPS = 16  # of factors in an octave; whole octaves lose a quarter more on SmolLM2-135M
_LEAST = 1e-4  # of a head's mean: channels that hardly move don't get factors without bound

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class KeyBalance:
    """Of one layer, float32 [kv_heads, head_dim] each: pages hold (key + shift) · factor, queries are multiplied by 1 / factor."""

    shift: Float32
    factor: Float32

    @property
    def inverse(self) -> Float32:
        """What queries are multiplied by."""
        return np.float32(1) / self.factor

    def parts(self) -> tuple[Float32, Float32, Float32]:
        """Shift, factor and inverse."""
        return self.shift, self.factor, self.inverse

    def vectors(self) -> dict[str, Float32]:
        """Flat, by the names under which a native chain takes them."""
        names = ("k_shift", "k_factor", "q_factor")
        return {name: np.ascontiguousarray(values).reshape(-1) for name, values in zip(names, self.parts(), strict=True)}


def sample_tokens(config: ModelConfig) -> Int32:
    """Token ids scattered over the vocabulary, as many from each octave of ids: learned vocabularies begin with what is frequent.

    What is measured on them is within a few percent of what it is on text, and needs no tokenizer.
    """
    places = np.arange(min(SAMPLE, config.context_length), dtype=np.uint64)
    octaves = max(1, (config.vocab // _FIRST_OCTAVE).bit_length())
    first = np.uint64(_FIRST_OCTAVE) << (_scattered(places, 0x9E3779B1) % np.uint64(octaves))
    return np.asarray((first + _scattered(places, 0x85EBCA6B) % first) % np.uint64(config.vocab), np.int32)


def _scattered(places: npt.NDArray[np.uint64], factor: int) -> npt.NDArray[np.uint64]:
    return np.asarray(places * np.uint64(factor) % np.uint64(1 << 32) >> np.uint64(8), np.uint64)


def sample_batch(config: ModelConfig, page_tokens: int) -> StepBatch:
    """One step over those tokens from position 0, on pages 0 …; no output rows."""
    tokens = sample_tokens(config)
    pages = -(-len(tokens) // page_tokens)
    starts, owned = np.asarray([0, len(tokens)], np.int32), np.asarray([0, pages], np.int32)
    positions, page_ids = np.arange(len(tokens), dtype=np.int32), np.arange(pages, dtype=np.int32)
    return StepBatch(tokens, positions, starts, owned, page_ids, np.zeros(0, np.int32))


def balance(spec: AttentionSpec, queries: Float32, keys: Float32) -> KeyBalance:
    """From finished queries (times ``scale``) [T, heads, head_dim] and keys [T, kv_heads, head_dim]."""
    wide = keys.astype(np.float64)
    mean = wide.mean(axis=0)
    variance = _bounded(np.square(wide - mean).mean(axis=0))
    grouped = queries.astype(np.float64).reshape(len(queries), spec.kv_heads, -1, spec.head_dim)
    square = _bounded(np.square(grouped).mean(axis=(0, 2)))
    factor = np.exp2(np.rint(np.log2(square / variance) / 4 * _STEPS) / _STEPS)
    # Factors on steps, and few bits of the mean: sums of another order give the same ones.
    fine = np.exp2(np.floor(np.log2(np.sqrt(variance))) - 6)
    return KeyBalance((-np.rint(mean / fine) * fine).astype(np.float32), factor.astype(np.float32))


def _bounded(values: Float64) -> Float64:
    """Squares [heads, head_dim], none far below its head's mean; 1 where a head has none at all."""
    mean = values.mean(axis=-1, keepdims=True)
    return np.where(mean > 0, np.maximum(values, _LEAST * mean), 1.0)


def measure(config: ModelConfig, layer_heads: Callable[[int], tuple[Float32, Float32]]) -> list[KeyBalance]:
    """Of every layer in order; ``layer_heads`` gives a layer's finished queries and keys."""
    return [balance(spec, *layer_heads(layer)) for layer, spec in enumerate(config.attention_blocks)]
