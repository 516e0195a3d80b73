"""The description of a language model: a chain of blocks driven by data, never a file per family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]
Pooling = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched. ``llama3`` bends low frequencies only, ``linear`` divides all."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One attention block: norm, Q/K/V, rotary positions, grouped-query attention, output, residual.

    Rotary pairs are always (i, i + head_dim/2); loaders permute rows of files that pair neighbours.
    ``window`` counts the keys a query sees including itself (``None``: all). ``scale`` multiplies Q·K.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    qk_norm: bool = False
    qkv_bias: bool = False
    post_norm: bool = False


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """One gated MLP block: norm, activation(gate)·up, down, residual."""

    inner: int
    activation: Activation
    post_norm: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything the blocks need to know.

    ``blocks`` alternate attention and MLP. Norm gains are stored ready to multiply (Gemma's +1 is added by loaders).
    ``embedding_scale`` multiplies embedding rows (Gemma: sqrt(hidden)). ``tied_head``: the head is the embedding.
    ``pooling``: which rows make a text's vector, where the file says that the model was made for that.

    Weights are named ``embedding``, ``final_norm``, ``head`` and, for layer *i*,
    ``layer.i.attention.{norm,q,k,v,o,q_bias,k_bias,v_bias,q_norm,k_norm,post_norm}`` and
    ``layer.i.mlp.{norm,gate,up,down,post_norm}``; matrices are [outputs, inputs].
    """

    family: str
    hidden: int
    vocab: int
    context_length: int
    norm_eps: float
    blocks: tuple[AttentionSpec | MlpSpec, ...]
    embedding_scale: float = 1.0
    tied_head: bool = True
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pooling: Pooling | None = None

    @property
    def attention_blocks(self) -> tuple[AttentionSpec, ...]:
        """The attention blocks in order; their index is the layer index of the KV page."""
        return tuple(block for block in self.blocks if isinstance(block, AttentionSpec))

    @property
    def layers(self) -> int:
        """Transformer layers (two blocks each)."""
        return len(self.attention_blocks)
