"""Which activations must survive the forward pass: derived from the blocks and from what is trained, before anything runs.

FlexLLM's graph pruning, which for these blocks is short: a gradient is needed where something trained lies below it, a value is
kept where a needed gradient reads it, and what is cheap to compute again (norms, activations, softmax) is never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig
from headrace.training.arithmetic import Floats


@dataclass(frozen=True, slots=True)
class AttentionNeeds:
    """``any``: something here or below is trained. ``input``: something below is. ``upstream``: a gradient passes the output
    product. ``x``: the block's input is read again."""

    any: bool
    input: bool
    upstream: bool
    x: bool


@dataclass(frozen=True, slots=True)
class MlpNeeds:
    """As :class:`AttentionNeeds`; ``both``: gate and up are kept, which saves computing them again."""

    any: bool
    input: bool
    upstream: bool
    x: bool
    both: bool


Needs = AttentionNeeds | MlpNeeds

Make = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]
"""Makes an array of a shape and type, with anything in it: where it lies is its maker's affair."""


@dataclass(slots=True, eq=False)
class BlockRows:
    """What one block keeps of a pack, each [T, …]. Blocks that keep nothing share theirs; all share ``dq``, ``dk`` and ``dv``."""

    x: Floats
    q: Floats
    k: Floats
    v: Floats
    mixed: Floats
    both: Floats
    dq: Floats
    dk: Floats
    dv: Floats


def plan_needs(config: ModelConfig, trained: Sequence[Set[str]], *, keep_both: bool) -> list[Needs]:
    """For each block what its backward pass needs. ``trained``: modules by layer. ``keep_both``: there is memory for gates."""
    needs: list[Needs] = []
    layer, below = -1, False
    for spec in config.blocks:
        if isinstance(spec, AttentionSpec):
            layer += 1
            inside, last = bool(trained[layer] & {"q", "k", "v"}), "o" in trained[layer]
            needs.append(AttentionNeeds(below or inside or last, below, below or inside, below or inside))
        else:
            inside, last = bool(trained[layer] & {"gate", "up"}), "down" in trained[layer]
            use = below or inside or last
            needs.append(MlpNeeds(use, below, below or inside, use, use and keep_both))
        below = below or inside or last
    return needs


class SavedRows:
    """Buffers for packs of up to ``most`` tokens, made once. ``bytes``: all of them together."""

    def __init__(self, config: ModelConfig, needs: list[Needs], most: int, dtype: npt.DTypeLike, make: Make = np.empty) -> None:
        self.bytes = 0
        self._source = make
        self._dtype = np.dtype(dtype)
        widest_heads = max(spec.heads * spec.head_dim for spec in config.attention_blocks)
        self.stream = self._make(most, config.hidden)
        self.dx = self._make(most, config.hidden)
        flat = self._make(most * widest_heads)
        widest_keys = max(spec.kv_heads * spec.head_dim for spec in config.attention_blocks)
        spare = [self._make(most * width) for width in (widest_heads, widest_keys, widest_keys, widest_heads)]
        dk, dv = self._make(most * widest_keys), self._make(most * widest_keys)
        none = np.empty((0, 0), self._dtype)
        self.blocks: list[BlockRows] = []
        for spec, need in zip(config.blocks, needs, strict=True):
            x = self._make(most, config.hidden) if need.x else none
            if isinstance(spec, MlpSpec):
                both = self._make(most, 2 * spec.inner) if isinstance(need, MlpNeeds) and need.both else none
                self.blocks.append(BlockRows(x, none, none, none, none, both, none, none, none))
                continue
            heads, keys, d = spec.heads, spec.kv_heads, spec.head_dim
            shapes = ((most, heads, d), (most, keys, d), (most, keys, d), (most, heads * d))
            q, k, v, mixed = (
                self._make(*shape) if need.any else buffer[: int(np.prod(shape))].reshape(shape)
                for shape, buffer in zip(shapes, spare, strict=True)
            )
            count, width = most * heads * d, most * keys * d
            own = (flat[:count].reshape(most, heads, d), dk[:width].reshape(keys, most, d), dv[:width].reshape(keys, most, d))
            self.blocks.append(BlockRows(x, q, k, v, mixed, none, *own))

    def _make(self, *shape: int) -> Floats:
        made: Floats = self._source(shape, self._dtype)
        self.bytes += made.nbytes
        return made


def saved_bytes(config: ModelConfig, needs: list[Needs], tokens: int) -> int:
    """Bytes in float32 that :class:`SavedRows` will take."""
    hidden, heads, keys = config.hidden, 0, 0
    total = 2 * hidden
    for spec, need in zip(config.blocks, needs, strict=True):
        total += hidden if need.x else 0
        if isinstance(spec, MlpSpec):
            total += 2 * spec.inner if isinstance(need, MlpNeeds) and need.both else 0
            continue
        own_heads, own_keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        heads, keys = max(heads, own_heads), max(keys, own_keys)
        total += 2 * own_heads + 2 * own_keys if need.any else 0
    return 4 * tokens * (total + 3 * heads + 4 * keys)
