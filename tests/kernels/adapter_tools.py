"""Random adapters, steps that use them, and models that have them merged into their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from headrace.kernels.adapter_layout import lay_out
from headrace.kernels.adapter_pages import place_adapter
from headrace.kernels.interface import Bytes, PlacedAdapter, StepAdapters, StepBatch
from headrace.models.adapter import MODULES, Adapter, LowRank, module_sides, round_bf16
from headrace.models.config import ModelConfig

Uses = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Shape:
    """What an adapter changes: ``ranks`` by module, in every layer or every second one."""

    ranks: Mapping[str, int]
    every: int = 1
    size: float = 0.3


def random_adapter(config: ModelConfig, shape: Shape, seed: int) -> Adapter:
    """Numbers that change the logits much; none is zero."""
    generator = np.random.default_rng(seed)
    layers = []
    for index, sides in enumerate(module_sides(config)):
        parts = {}
        for name in MODULES:
            rank = shape.ranks.get(name, 0)
            if not rank or index % shape.every:
                continue
            inputs, outputs = sides[name]
            a = generator.standard_normal((rank, inputs), np.float32) / np.sqrt(inputs)
            b = generator.standard_normal((outputs, rank), np.float32) * (shape.size / np.sqrt(rank))
            parts[name] = LowRank(round_bf16(a), round_bf16(b), float(np.float32(generator.uniform(0.5, 2.0))))
        layers.append(parts)
    return Adapter(tuple(layers), "random")


def place_all(adapters: Sequence[Adapter], config: ModelConfig, pool: Bytes, first: int) -> list[PlacedAdapter]:
    """The adapters in pages of the pool from ``first`` on, in a scattered order."""
    counts = [lay_out(config, adapter.ranks, pool.shape[1]).pages for adapter in adapters]
    free = np.random.default_rng(5).permutation(np.arange(first, first + sum(counts), dtype=np.int32))
    assert first + sum(counts) <= len(pool)
    placed, used = [], 0
    for adapter, count in zip(adapters, counts, strict=True):
        placed.append(place_adapter(adapter, config, pool, free[used : used + count]))
        used += count
    return placed


def pages_of(adapters: Sequence[Adapter], config: ModelConfig, page_bytes: int) -> int:
    return sum(lay_out(config, adapter.ranks, page_bytes).pages for adapter in adapters)


def with_adapters(batch: StepBatch, uses: Sequence[Uses], placed: Sequence[PlacedAdapter]) -> StepBatch:
    """The batch with adapters: for each slice the (index, scale) of those it uses."""
    flat = [use for slice_uses in uses for use in slice_uses]
    starts = np.cumsum([0, *(len(slice_uses) for slice_uses in uses)]).astype(np.int32)
    ids, scales = np.array([use[0] for use in flat], np.int32), np.array([use[1] for use in flat], np.float32)
    return replace(batch, adapters=StepAdapters(starts, ids, scales, tuple(placed)))
