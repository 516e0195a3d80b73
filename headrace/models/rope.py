"""Rotary frequencies of an attention block, the one place where theta and its scaling become numbers."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headrace.models.config import AttentionSpec, RopeScaling


def inverse_frequencies(spec: AttentionSpec) -> npt.NDArray[np.float32]:
    """Radians a position turns each pair (i, i + head_dim/2): [head_dim / 2], computed in double, then rounded once."""
    exponent = np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim
    frequencies = spec.rope_theta**-exponent
    if spec.rope_scaling is not None:
        frequencies = frequencies / scaling_divisors(frequencies, spec.rope_scaling)
    return frequencies.astype(np.float32)


def scaling_divisors(frequencies: npt.NDArray[np.float64], scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """What each frequency is divided by, [head_dim / 2].

    ``linear`` divides all alike. ``llama3`` (the Llama 3 herd of models) keeps waves that turn often within the
    original context, divides slow ones by the factor, and blends in between.
    """
    if scaling.kind == "linear":
        return np.full_like(frequencies, scaling.factor)
    turns = scaling.original_context * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - kept) / scaling.factor + kept)
