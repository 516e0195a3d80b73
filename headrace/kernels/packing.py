"""Turns a model file's tensors into packed matrices, and the native packer's refusals into model-file errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.errors import HeadraceError
from headrace.kernels._native import PackedMatrix, ThreadPool
from headrace.models.weights import RawTensor

MAX_SIDE = 1 << 30


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


def _source(tensor: RawTensor) -> tuple[np.ndarray, str, int, int, np.ndarray | None]:
    if len(tensor.shape) != 2 or max(tensor.shape) > MAX_SIDE:
        raise HeadraceError("model_file", f"a matrix needs two sides of at most {MAX_SIDE}, the file says {list(tensor.shape)}")
    order = tensor.row_order
    if order is not None:
        order = np.ascontiguousarray(order, np.int32)
    return np.ascontiguousarray(tensor.data), tensor.kind, tensor.shape[0], tensor.shape[1], order
