"""Low-rank adapters ("LoRA: Low-Rank Adaptation of Large Language Models", Hu et al.) in one form, whatever file they came from.

::

    y = W·x  becomes  y = W·x + scale · B·(A·x),   A [rank, inputs], B [outputs, rank]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.models.config import AttentionSpec, ModelConfig
from headrace.models.files import refuse
from headrace.models.quantised_folder import QuantisedWeights
from headrace.models.recoding import encode_bf16
from headrace.models.weights import WeightSource

MODULES = ("q", "k", "v", "o", "gate", "up", "down")
MAX_RANK = 4096

Codes = npt.NDArray[np.uint16]
Float32 = npt.NDArray[np.float32]
Sides = tuple[int, int]

_KEPT_BASIS = ("clip", "gptq", "plain rounding")  # steps of a quantisation that leave every axis where it was


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What an adapter adds to one matrix: ``scale`` · ``b`` · ``a``, both in codes of bfloat16, row-major.

    ``a``: [rank, inputs]. ``b``: [outputs, rank]. ``scale``: alpha / rank, or what the file's settings make of it.
    """

    a: Codes
    b: Codes
    scale: float

    @property
    def rank(self) -> int:
        """Rows of ``a``."""
        return int(self.a.shape[0])

    def delta(self) -> Float32:
        """The whole change of the matrix, [outputs, inputs]: what merging would add. Slow; for oracles."""
        return np.asarray(np.float32(self.scale) * (decode_bf16(self.b) @ decode_bf16(self.a)))


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One adapter: for each layer the modules that it changes (names of :data:`MODULES`).

    ``base_model``: what its file calls the model that it was trained on; a name only, sizes are what is checked.
    """

    layers: tuple[Mapping[str, LowRank], ...]
    base_model: str = ""

    @property
    def parameters(self) -> int:
        """Numbers in all of its matrices."""
        return sum(part.a.size + part.b.size for layer in self.layers for part in layer.values())

    @property
    def ranks(self) -> tuple[Mapping[str, int], ...]:
        """Rank of each changed module, by layer."""
        return tuple({name: part.rank for name, part in layer.items()} for layer in self.layers)


def module_sides(config: ModelConfig) -> tuple[dict[str, Sides], ...]:
    """(inputs, outputs) of each module an adapter may change, by layer."""
    layers: list[dict[str, Sides]] = []
    hidden = config.hidden
    for block in config.blocks:
        if isinstance(block, AttentionSpec):
            queries, keys = block.heads * block.head_dim, block.kv_heads * block.head_dim
            layers.append({"q": (hidden, queries), "k": (hidden, keys), "v": (hidden, keys), "o": (queries, hidden)})
        else:
            layers[-1] |= {"gate": (hidden, block.inner), "up": (hidden, block.inner), "down": (block.inner, hidden)}
    return tuple(layers)


def check_fits(adapter: Adapter, config: ModelConfig) -> None:
    """Refuse an adapter that was made for a model of other sizes. Raises ``model_file`` naming the first difference."""
    sides = module_sides(config)
    if len(adapter.layers) != len(sides):
        raise refuse(f"the adapter has {len(adapter.layers)} layers, the model has {len(sides)}; it belongs to another base model")
    for index, (layer, own) in enumerate(zip(adapter.layers, sides, strict=True)):
        for name, part in layer.items():
            if name not in own:
                raise refuse(f"the adapter changes {name[:32]!r} of layer {index}, known are {', '.join(MODULES)}")
            inputs, outputs = own[name]
            if part.a.shape != (part.rank, inputs) or part.b.shape != (outputs, part.rank) or not 1 <= part.rank <= MAX_RANK:
                raise refuse(
                    f"layer {index} {name}: A {list(part.a.shape)} and B {list(part.b.shape)} don't fit the model's "
                    f"[{outputs}, {inputs}]; the adapter belongs to another base model"
                )


def check_base(weights: WeightSource) -> None:
    """Refuse a base whose axes are not those of the model that adapters are trained on.

    Quantisation may rotate, scale or reorder what flows between matrices; an adapter of the original would then be applied to
    other numbers than it was trained on. Raises ``model_file``.
    """
    if not isinstance(weights, QuantisedWeights):
        return
    steps = weights.info.method.rpartition("steps: ")[2].split(", ")
    moved = [step for step in steps if step not in _KEPT_BASIS]
    if moved:
        raise refuse(
            f"this model was quantised with the step {moved[0][:40]!r}, which moves the axes that adapters work on; "
            "serve adapters on its source, or on one quantised with --steps none, clip or gptq"
        )


def round_bf16(values: npt.NDArray[np.floating[Any]]) -> Codes:
    """Codes of bfloat16, rounded to nearest even, in the shape of ``values``."""
    return encode_bf16(np.asarray(values, np.float32)).view(np.uint16).reshape(values.shape)


def decode_bf16(codes: Codes) -> Float32:
    """The exact values of codes of bfloat16."""
    return (codes.astype(np.uint32) << 16).view(np.float32)
