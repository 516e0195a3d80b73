"""Row-wise pieces of a transformer and their derivatives, in numpy, in whatever float type they are given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.models.config import Activation

Floats = npt.NDArray[np.floating[Any]]

_TANH_SCALE = math.sqrt(2.0 / math.pi)
_TANH_CUBE = 0.044715


def norm_factor(x: Floats, eps: float) -> Floats:
    """1 / rms of the last axis, kept as an axis of one."""
    squares = np.einsum("...i,...i->...", x, x)[..., None]
    return np.asarray(1.0 / np.sqrt(squares / x.shape[-1] + eps), x.dtype)


def norm(x: Floats, gain: Floats, eps: float) -> Floats:
    """x / rms(x) · gain over the last axis."""
    return np.asarray(x * norm_factor(x, eps) * gain)


def norm_back(x: Floats, gain: Floats, eps: float, dy: Floats) -> Floats:
    """What :func:`norm` hands back to ``x``."""
    factor, scaled = norm_factor(x, eps), dy * gain
    inner = np.einsum("...i,...i->...", scaled, x)[..., None] / x.shape[-1]
    return np.asarray(factor * (scaled - x * (factor * factor * inner)))


def rotate(x: Floats, cosine: Floats, sine: Floats) -> Floats:
    """Turn the pairs (i, i + head_dim/2) of ``x`` [T, heads, head_dim] by each row's angles [T, head_dim/2].

    With ``-sine`` it turns back, which is also its derivative.
    """
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    cosine, sine = cosine[:, None], sine[:, None]
    return np.concatenate((low * cosine - high * sine, high * cosine + low * sine), axis=-1)


def activate(kind: Activation, gate: Floats) -> tuple[Floats, Floats]:
    """The activation of ``gate`` and what its derivative needs: see :func:`activate_back`."""
    if kind == "silu":
        inner = np.negative(gate)
        np.exp(inner, out=inner)
        inner += 1.0
        np.reciprocal(inner, out=inner)
        return gate * inner, inner
    inner = np.tanh(_TANH_SCALE * (gate + _TANH_CUBE * gate * gate * gate))
    return 0.5 * gate * (1.0 + inner), inner


def activate_back(kind: Activation, gate: Floats, inner: Floats) -> Floats:
    """The activation's derivative at ``gate``."""
    if kind == "silu":
        slope = np.subtract(1.0, inner, dtype=inner.dtype)
        slope *= gate
        slope += 1.0
        slope *= inner
        return slope
    slope = _TANH_SCALE * (1.0 + 3.0 * _TANH_CUBE * gate * gate)
    return np.asarray(0.5 * (1.0 + inner) + 0.5 * gate * (1.0 - inner * inner) * slope)


def soften(scores: Floats) -> None:
    """Softmax over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
