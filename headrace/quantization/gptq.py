"""Rounding with error feedback: what one column's rounding spoils, later columns make good (GPTQ, Frantar et al.)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.quantization.grid import Float32, Grid, Int32

BLOCK = 128
DAMPING = 0.01

Float64 = npt.NDArray[np.float64]


def gptq(values: Float32, hessian: Float32, grid: Grid, damping: float = DAMPING) -> Int32:
    """Codes [N, K] on ``grid`` whose product with the calibration rows is nearest to that of ``values``.

    ``hessian`` [K, K]: mean outer product of the input rows. Columns are taken by falling diagonal, in blocks of 128;
    ``damping``: share of the mean diagonal that is added to it. Inputs that were always zero are rounded plainly.
    """
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = _inverse_factor(hessian[np.ix_(order, order)].astype(np.float64), damping)
    rest = np.ascontiguousarray(values.T[order])  # [K, N]: one input's weights lie together
    step, first = grid.steps(values.shape[1])
    groups = order // grid.group if grid.group else np.zeros(len(order), np.int64)
    low, high = grid.code_range
    codes = np.empty(rest.shape, np.int32)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        errors = np.empty((end - start, rest.shape[1]), np.float32)
        for column in range(start, end):
            scale, origin = step[groups[column]], first[groups[column]]
            code = np.clip(np.rint((rest[column] - origin) / scale), low, high)
            codes[column] = code
            error = (rest[column] - (code * scale + origin)) / factor[column, column]
            rest[column + 1 : end] -= factor[column, column + 1 : end, None] * error
            errors[column - start] = error
        rest[end:] -= factor[start:end, end:].T @ errors
    back = np.empty_like(codes)
    back[order] = codes
    return np.ascontiguousarray(back.T)


def output_error(values: Float32, rounded: Float32, hessian: Float32) -> float:
    """Mean square of the outputs' error over the calibration rows, summed over the outputs."""
    difference = values - rounded
    return float(np.einsum("nk,nk->", difference @ hessian, difference, dtype=np.float64))


def _inverse_factor(hessian: Float64, damping: float) -> Float32:
    """Upper Cholesky factor of the damped inverse."""
    diagonal = np.diag(hessian).copy()
    dead = diagonal <= 0
    mean = float(diagonal.mean())
    hessian[np.diag_indices(len(hessian))] = np.where(dead, mean or 1.0, diagonal) + damping * (mean or 1.0)
    inverse = np.linalg.inv(hessian)
    lower = np.linalg.cholesky((inverse + inverse.T) / 2)
    return np.ascontiguousarray(lower.T.astype(np.float32))
