"""One layer from fp32 to integers: the recipe's steps in their order, on arrays only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from headrace.models.config import AttentionSpec
from headrace.quantization.gptq import gptq
from headrace.quantization.grid import Float32, Grid, Int32, channel_grid, progressive_grid
from headrace.quantization.hadamard import rotation
from headrace.quantization.recipe import Recipe
from headrace.quantization.smoothing import key_factors, search_factors
from headrace.quantization.statistics import InputStatistics, LayerStatistics
from headrace.quantization.transforms import (
    READERS,
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

MATRICES = {
    "qkv": ("attention.q", "attention.k", "attention.v"),
    "o": ("attention.o",),
    "gate_up": ("mlp.gate", "mlp.up"),
    "down": ("mlp.down",),
}
"""Which matrices share each kind of input rows."""
KINDS = {name: kind for kind, names in MATRICES.items() for name in names}
"""What kind of rows each matrix meets."""


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A rounded matrix: integer codes [N, K] and the grid they lie on."""

    codes: Int32
    grid: Grid

    def values(self) -> Float32:
        """What it stands for."""
        return self.grid.values(self.codes)


@dataclass(frozen=True, slots=True, eq=False)
class RoundedLayer:
    """``matrices`` by short name, and the ``vectors`` (norm gains, biases) that stay float32."""

    matrices: dict[str, Codes]
    vectors: Layer

    def values(self) -> Layer:
        """The layer as float32 arrays again."""
        return self.vectors | {name: matrix.values() for name, matrix in self.matrices.items()}


def turn(layer: Mapping[str, Float32], spec: AttentionSpec, recipe: Recipe, residual: Float32 | None) -> Layer:
    """The steps that need no calibration: rotations. ``residual``: the stream's rotation (``None`` without that step)."""
    made = dict(layer)
    if residual is not None:
        made = rotate_layer(fold_gains(made), residual)
    if "rotate-heads" in recipe:
        made = rotate_heads(made, spec, rotation(spec.head_dim))
    return made


def smooth(
    layer: Mapping[str, Float32], spec: AttentionSpec, recipe: Recipe, found: LayerStatistics
) -> tuple[Layer, LayerStatistics]:
    """The steps that move outliers; with what calibration would have found behind them."""
    made, inputs = dict(layer), dict(found.inputs)
    if "smooth-attention" in recipe:
        made = scale_keys(made, spec, key_factors(found.key_peak, shared=spec.qk_norm))
    if "reorder" in recipe:
        order = np.argsort(-inputs["down"].peak, kind="stable")
        made, inputs["down"] = reorder_inner(made, order), inputs["down"].reordered(order)
    if "smooth" in recipe:
        made, inputs = _smooth_inputs(made, spec, recipe, inputs)
    return made, replace(found, inputs=inputs)


def round_layer(layer: Mapping[str, Float32], recipe: Recipe, found: LayerStatistics | None) -> RoundedLayer:
    """Every matrix on its grid. ``found`` is needed by the steps clip and gptq."""
    matrices = {}
    for kind, names in MATRICES.items():
        statistics = found.inputs[kind] if found is not None else None
        stacked = np.concatenate([layer[name] for name in names])
        rounded = round_matrix(stacked, recipe, statistics)
        start = 0
        for name in names:
            end = start + len(layer[name])
            matrices[name] = _part(rounded, start, end)
            start = end
    vectors = {name: values for name, values in layer.items() if name not in matrices}
    return RoundedLayer(matrices, vectors)


def round_matrix(values: Float32, recipe: Recipe, statistics: InputStatistics | None) -> Codes:
    """One matrix [N, K] on its grid, plainly or with error feedback."""
    importance = statistics.importance if statistics is not None and "clip" in recipe else None
    grid = progressive_grid(values, recipe.group, importance) if recipe.group else channel_grid(values, importance)
    if statistics is not None and "gptq" in recipe:
        return Codes(gptq(values, statistics.hessian, grid), grid)
    return Codes(grid.round(values), grid)


def _smooth_inputs(
    layer: Layer, spec: AttentionSpec, recipe: Recipe, inputs: dict[str, InputStatistics]
) -> tuple[Layer, dict[str, InputStatistics]]:
    made, changed = layer, dict(inputs)
    group, bits = recipe.group, recipe.row_bits
    if "rotate" not in recipe:  # a rotated stream is even already, and its norms must keep gains of one
        for kind, norm in (("qkv", "attention.norm"), ("gate_up", "mlp.norm")):
            weights = np.concatenate([made[name] for name in READERS[norm]])
            factors = search_factors(weights, changed[kind], group, bits(kind))
            made, changed[kind] = scale_normed(made, norm, factors), changed[kind].divided(factors)
    if "rotate-heads" not in recipe and spec.heads == spec.kv_heads:  # else one value channel serves several inputs of `o`
        factors = search_factors(made["attention.o"], changed["o"], group, bits("o"))
        made = scale_values(made, spec, factors.reshape(spec.kv_heads, spec.head_dim))
        changed["o"] = changed["o"].divided(factors)
    factors = search_factors(made["mlp.down"], changed["down"], group, bits("down"))
    return scale_inner(made, factors), changed | {"down": changed["down"].divided(factors)}


def _part(whole: Codes, start: int, end: int) -> Codes:
    grid = whole.grid
    if grid.scales is None or grid.zeros is None:
        return Codes(whole.codes[start:end], Grid(grid.channel_scales[start:end]))
    parts = Grid(grid.channel_scales[start:end], grid.scales[start:end], grid.zeros[start:end], grid.group)
    return Codes(whole.codes[start:end], parts)
