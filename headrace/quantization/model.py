"""A model on its way: fp32 tensors read layer by layer, the rounded ends, and the finished whole."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from headrace.errors import HeadraceError
from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig
from headrace.models.quantised_matrix import QuantisedMatrix
from headrace.models.weights import WeightSource, dequantise
from headrace.quantization.grid import Float32, channel_grid
from headrace.quantization.hadamard import rotation
from headrace.quantization.layers import KINDS, Codes, RoundedLayer
from headrace.quantization.recipe import Recipe
from headrace.quantization.transforms import Layer

_SIGNS_SEED = 0
HEAD_BITS = 16  # of the activations; only one row of a prompt ever meets the head


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The model that is to be quantised."""

    config: ModelConfig
    weights: WeightSource

    def tensor(self, name: str) -> Float32:
        """A tensor as float32. Raises ``model_file`` when it holds NaN or infinities."""
        values = dequantise(self.weights.tensor(name))
        if not np.isfinite(values).all():
            raise HeadraceError("model_file", f"tensor {name!r} has values that are infinite or not a number; repair the source")
        return values

    def layer(self, index: int) -> Layer:
        """A layer's tensors by their short names."""
        prefix = f"layer.{index}."
        return {name.removeprefix(prefix): self.tensor(name) for name in self.weights.names() if name.startswith(prefix)}

    def specs(self, index: int) -> tuple[AttentionSpec, MlpSpec]:
        """A layer's two blocks. Raises ``model_file`` where they don't alternate."""
        attention, mlp = self.config.blocks[2 * index : 2 * index + 2]
        if not isinstance(attention, AttentionSpec) or not isinstance(mlp, MlpSpec):
            raise HeadraceError("model_file", f"layer {index} is not an attention block and an MLP")
        return attention, mlp

    def residual_rotation(self, recipe: Recipe) -> Float32 | None:
        """What the recipe turns the residual stream by."""
        return rotation(self.config.hidden, _SIGNS_SEED) if "rotate" in recipe else None


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """Embedding, final norm and head. ``head`` is ``None`` where the embedding serves as the head."""

    embedding: Codes
    final_norm: Float32
    head: Codes | None

    def embed(self, tokens: np.ndarray, scale: float) -> Float32:
        """Rows of the residual stream for token ids of any shape."""
        grid = self.embedding.grid
        rows = self.embedding.codes[tokens].astype(np.float32) * grid.channel_scales[tokens][..., None]
        return np.asarray(rows * np.float32(scale), np.float32)

    def head_values(self) -> Float32:
        """The head as float32."""
        return (self.head or self.embedding).values()


def round_ends(source: Source, recipe: Recipe) -> Ends:
    """8 bits and one scale a token for embedding and head.

    With a rotated stream the final norm's gains move into the head, which then differs from the embedding.
    """
    embedding = source.tensor("embedding")
    final_norm = source.tensor("final_norm")
    head = None if source.config.tied_head else source.tensor("head")
    turned = source.residual_rotation(recipe)
    if turned is not None:
        head = np.asarray((embedding if head is None else head) * final_norm @ turned, np.float32)
        embedding, final_norm = embedding @ turned, np.ones_like(final_norm)
    return Ends(_round_bytes(embedding), final_norm, None if head is None else _round_bytes(head))


def _round_bytes(values: Float32) -> Codes:
    grid = channel_grid(values)
    # int8, not int32: these are the largest matrices of a small model.
    return Codes(np.rint(values / grid.channel_scales[:, None]).astype(np.int8), grid)


@dataclass(frozen=True, slots=True, eq=False)
class RoundedModel:
    """A finished quantisation."""

    config: ModelConfig
    recipe: Recipe
    ends: Ends
    layers: tuple[RoundedLayer, ...]

    @property
    def own_config(self) -> ModelConfig:
        """What the quantised model loads as: its head may have become a matrix of its own."""
        return replace(self.config, tied_head=self.ends.head is None)

    def matrices(self) -> list[QuantisedMatrix]:
        """Every matrix in the runtime's form."""
        made = [runtime_matrix("embedding", self.ends.embedding, HEAD_BITS)]
        if self.ends.head is not None:
            made.append(runtime_matrix("head", self.ends.head, HEAD_BITS))
        for index, layer in enumerate(self.layers):
            for name, codes in layer.matrices.items():
                made.append(runtime_matrix(f"layer.{index}.{name}", codes, self.recipe.row_bits(KINDS[name])))
        return made

    def vectors(self) -> Layer:
        """Norm gains and biases by canonical name."""
        made = {"final_norm": self.ends.final_norm}
        for index, layer in enumerate(self.layers):
            made |= {f"layer.{index}.{name}": values for name, values in layer.vectors.items()}
        return made


def runtime_matrix(name: str, rounded: Codes, activation_bits: int) -> QuantisedMatrix:
    """A rounded matrix in the form that is stored and run."""
    grid, codes = rounded.grid, rounded.codes
    if grid.scales is None or grid.zeros is None:
        return QuantisedMatrix(name, codes.astype(np.int8), None, None, grid.channel_scales, 0, activation_bits)
    low, high = codes[:, 0::2].astype(np.uint8), codes[:, 1::2].astype(np.uint8)
    scales, zeros = grid.scales.astype(np.uint8), grid.zeros.astype(np.int16)
    return QuantisedMatrix(name, low | high << 4, scales, zeros, grid.channel_scales, grid.group, activation_bits)
