"""Turns a model file's tensors into packed matrices, and the native packer's refusals into model-file errors."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.kernels._native import PackedMatrix, ThreadPool
from headrace.models.config import AttentionSpec, ModelConfig
from headrace.models.weights import RawTensor, WeightSource

MAX_SIDE = 1 << 30

Matrices = dict[str, PackedMatrix]
_FACTS = tuple(field.name for field in fields(RawTensor) if field.name not in ("data", "row_order"))


@dataclass(frozen=True, slots=True)
class Stack:
    """A packed matrix to be: tensors of these names stacked along their outputs (see :func:`pack`)."""

    name: str
    tensors: tuple[str, ...]
    interleave: bool = False


def stacks(config: ModelConfig) -> Iterator[Stack]:
    """Every packed matrix of a model, in the order in which the chain uses them."""
    layer = -1
    for spec in config.blocks:
        if isinstance(spec, AttentionSpec):
            layer += 1
            prefix = f"layer.{layer}.attention."
            yield Stack(prefix + "qkv", (prefix + "q", prefix + "k", prefix + "v"))
            yield Stack(prefix + "o", (prefix + "o",))
        else:
            prefix = f"layer.{layer}.mlp."
            yield Stack(prefix + "gate_up", (prefix + "gate", prefix + "up"), interleave=True)
            yield Stack(prefix + "down", (prefix + "down",))
    yield Stack("embedding", ("embedding",))
    if not config.tied_head:
        yield Stack("head", ("head",))


def pack_all(config: ModelConfig, weights: WeightSource, pool: ThreadPool) -> Iterator[tuple[Stack, PackedMatrix]]:
    """Pack a model's matrices, each when it is asked for."""
    for stack in stacks(config):
        yield stack, pack([weights.tensor(name) for name in stack.tensors], pool, interleave=stack.interleave)


def pack(tensors: Sequence[RawTensor], pool: ThreadPool, *, interleave: bool = False) -> PackedMatrix:
    """One packed matrix of the tensors stacked along their outputs, each starting at a multiple of 16 columns.

    ``interleave`` alternates panels of 16 outputs of exactly two tensors (gate and up of a gated MLP). Codes of the file
    are kept exactly; scales of K-quants are rounded to fp16. The order of weights (16 channels × 4 inputs beside each
    other, scales right behind) follows QServe's compute-aware reordering (Lin et al., W4A8KV4).
    Raises ``model_file`` when a tensor's bytes don't fit its kind and shape or a scale isn't finite.
    """
    sources = [_source(tensor) for tensor in tensors]
    try:
        return PackedMatrix.pack(sources, pool, interleave)
    except ValueError as error:
        raise HeadraceError("model_file", str(error)) from error


def borrow(tensors: Sequence[RawTensor], panels: npt.NDArray[np.uint8], *, interleave: bool = False) -> PackedMatrix:
    """What :func:`pack` makes of these tensors, over its own ``panels`` kept from another time; keeps them alive.

    The layout follows from kinds and shapes, so that nothing of it has to be stored or believed. Raises ValueError when
    the panels have another size.
    """
    return PackedMatrix.borrow([(tensor.kind, *_sides(tensor)) for tensor in tensors], interleave, panels)


def recipe(tensors: Sequence[RawTensor], *, interleave: bool = False) -> str:
    """Everything that decides how the tensors are laid out, but for their bytes and the packer itself."""
    parts = [[str(getattr(tensor, name)) for name in _FACTS] + [str(_order_sum(tensor))] for tensor in tensors]
    return ("|" if interleave else "+").join(":".join(part) for part in parts)


def _order_sum(tensor: RawTensor) -> int:
    return 0 if tensor.row_order is None else zlib.crc32(np.ascontiguousarray(tensor.row_order, np.int32).data)


def _sides(tensor: RawTensor) -> tuple[int, int]:
    if len(tensor.shape) != 2 or max(tensor.shape) > MAX_SIDE:
        raise HeadraceError("model_file", f"a matrix needs two sides of at most {MAX_SIDE}, the file says {list(tensor.shape)}")
    return tensor.shape[0], tensor.shape[1]


def _source(tensor: RawTensor) -> tuple[np.ndarray, str, int, int, np.ndarray | None]:
    rows, inputs = _sides(tensor)
    order = tensor.row_order
    if order is not None:
        order = np.ascontiguousarray(order, np.int32)
    return np.ascontiguousarray(tensor.data), tensor.kind, rows, inputs, order
