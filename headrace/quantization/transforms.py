"""Changes of a model's weights that change none of its outputs: each makes some matrix or activation easier to round.

A layer is a mapping of short names (``attention.q``, ``mlp.down``, …) to float32 arrays; every function returns a new one
and leaves its argument alone. Matrices are [outputs, inputs]. Rotations follow QuaRot (Ashkboos et al.) and QServe (Lin et
al.), scaling SmoothQuant (Xiao et al.).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.models.config import AttentionSpec

Float32 = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]
Layer = dict[str, Float32]

READERS = {"attention.norm": ("attention.q", "attention.k", "attention.v"), "mlp.norm": ("mlp.gate", "mlp.up")}
"""Which matrices read what a norm gives."""
WRITERS = ("attention.o", "mlp.down")
"""Which matrices add to the residual stream."""


def fold_gains(layer: Mapping[str, Float32]) -> Layer:
    """Norm gains moved into the matrices behind them; the norms then only divide."""
    made = dict(layer)
    for norm, readers in READERS.items():
        for name in readers:
            made[name] = layer[name] * layer[norm]
        made[norm] = np.ones_like(layer[norm])
    return made


def rotate_layer(layer: Mapping[str, Float32], rotation: Float32) -> Layer:
    """The layer on a residual stream x·R instead of x. The norms must have gains of one (:func:`fold_gains`) and none behind.

    Raises ``invalid_value`` otherwise: a norm behind a block weighs the stream's own axes, which a rotation mixes.
    """
    check_rotatable(layer)
    made = dict(layer)
    for name in (name for readers in READERS.values() for name in readers):
        made[name] = layer[name] @ rotation
    for name in WRITERS:
        made[name] = rotation.T @ layer[name]
    return made


def check_rotatable(layer: Mapping[str, Float32]) -> None:
    """Refuse a layer whose residual stream can't be rotated."""
    if any(name.endswith(".post_norm") for name in layer):
        raise HeadraceError(
            "invalid_value",
            "the step rotate can't be used with this family: it has norms behind its blocks, whose gains a rotation of the residual"
            " stream would mix; leave the step out, the others work",
            param="steps",
        )
    if any(not (layer[norm] == 1).all() for norm in READERS):
        raise HeadraceError("internal_error", "norm gains must be folded before the residual stream is rotated")


def rotate_heads(layer: Mapping[str, Float32], spec: AttentionSpec, rotation: Float32) -> Layer:
    """Each head's values turned by ``rotation`` [head_dim, head_dim], and turned back by the output matrix."""
    made = dict(layer)
    size = spec.head_dim
    value = layer["attention.v"].reshape(spec.kv_heads, size, -1)
    made["attention.v"] = np.ascontiguousarray((rotation.T @ value).reshape(layer["attention.v"].shape))
    if "attention.v_bias" in layer:
        made["attention.v_bias"] = (layer["attention.v_bias"].reshape(-1, size) @ rotation).reshape(-1)
    output = layer["attention.o"].reshape(-1, spec.heads, size)
    made["attention.o"] = np.ascontiguousarray((output @ rotation).reshape(layer["attention.o"].shape))
    return made


def scale_keys(layer: Mapping[str, Float32], spec: AttentionSpec, factors: Float32) -> Layer:
    """Keys divided and queries multiplied by ``factors`` [kv_heads, head_dim] (QServe's SmoothAttention), biases too.

    Both members of a rotated pair must share a factor. Where queries and keys are normed, the gains take the factors: they
    serve all heads of a layer, so all rows of ``factors`` must then be equal.
    """
    made = dict(layer)
    half = spec.head_dim // 2
    if not np.array_equal(factors[:, :half], factors[:, half:]):
        raise HeadraceError("internal_error", "rotated pairs must share a factor")
    if spec.qk_norm:
        if not (factors == factors[:1]).all():
            raise HeadraceError("internal_error", "heads that share a norm must share its factors")
        made["attention.q_norm"] = layer["attention.q_norm"] * factors[0]
        made["attention.k_norm"] = layer["attention.k_norm"] / factors[0]
        return made
    for_queries = np.repeat(factors, spec.heads // spec.kv_heads, axis=0).reshape(-1)
    for name, factor in (("q", for_queries), ("k", np.reciprocal(factors).reshape(-1))):
        made[f"attention.{name}"] = layer[f"attention.{name}"] * factor[:, None]
        if spec.qkv_bias:
            made[f"attention.{name}_bias"] = layer[f"attention.{name}_bias"] * factor
    return made


def reorder_inner(layer: Mapping[str, Float32], order: Order) -> Layer:
    """The MLP's inner channels in another order: ``order`` [inner] says which old channel each new one is."""
    made = dict(layer)
    made["mlp.gate"], made["mlp.up"] = layer["mlp.gate"][order], layer["mlp.up"][order]
    made["mlp.down"] = np.ascontiguousarray(layer["mlp.down"][:, order])
    return made


def scale_inner(layer: Mapping[str, Float32], factors: Float32) -> Layer:
    """What enters ``down`` divided by ``factors`` [inner], through ``up``, which acts on it linearly."""
    made = dict(layer)
    made["mlp.up"] = layer["mlp.up"] / factors[:, None]
    made["mlp.down"] = layer["mlp.down"] * factors
    return made


def scale_values(layer: Mapping[str, Float32], spec: AttentionSpec, factors: Float32) -> Layer:
    """What enters ``o`` divided by ``factors`` [kv_heads, head_dim], through ``v``."""
    made = dict(layer)
    made["attention.v"] = layer["attention.v"] / factors.reshape(-1)[:, None]
    if spec.qkv_bias:
        made["attention.v_bias"] = layer["attention.v_bias"] / factors.reshape(-1)
    made["attention.o"] = layer["attention.o"] * np.repeat(factors, spec.heads // spec.kv_heads, axis=0).reshape(-1)
    return made


def scale_normed(layer: Mapping[str, Float32], norm: str, factors: Float32) -> Layer:
    """What leaves a norm divided by ``factors`` [hidden], through its gain."""
    made = dict(layer)
    made[norm] = layer[norm] / factors
    for name in READERS[norm]:
        made[name] = layer[name] * factors
    return made
