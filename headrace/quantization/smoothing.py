"""Factors that even out channels: for keys by a rule, for the inputs of a product by trying a small grid of exponents."""

from __future__ import annotations

import itertools

import numpy as np

from headrace.quantization.grid import Float32, channel_grid, progressive_grid
from headrace.quantization.statistics import InputStatistics

KEY_EXPONENT = 0.5
_ACTIVATION_EXPONENTS = (0.05, 0.2, 0.35, 0.5)
_WEIGHT_EXPONENTS = (0.0, 0.35, 0.65, 0.95)
_RANGE = 1e3  # factors lie within this of their geometric mean: no channel may vanish in rounding


def key_factors(key_peak: Float32, shared: bool, exponent: float = KEY_EXPONENT) -> Float32:
    """SmoothAttention's factors [kv_heads, head_dim]: the larger peak of each rotated pair to the power ``exponent``.

    ``shared``: one row of factors for all heads (their norm is one).
    """
    half = key_peak.shape[1] // 2
    pair = np.maximum(key_peak[:, :half], key_peak[:, half:])
    if shared:
        pair = np.broadcast_to(pair.max(axis=0), pair.shape)
    pair = np.where(pair > 0, pair, 1.0)
    factors = pair**exponent
    factors = factors / np.exp(np.log(factors).mean(axis=1, keepdims=True))
    return np.asarray(np.concatenate((factors, factors), axis=1), np.float32)


def input_factors(activation_peak: Float32, weight_peak: Float32, a: float, b: float) -> Float32:
    """SmoothQuant's factors with two exponents: peak|X|^a / peak|W|^b, [K], with a geometric mean of one."""
    floor = np.float32(1e-5)
    logarithm = a * np.log(np.maximum(activation_peak, floor)) - b * np.log(np.maximum(weight_peak, floor))
    logarithm = np.clip(logarithm - logarithm.mean(), -np.log(_RANGE), np.log(_RANGE))
    return np.asarray(np.exp(logarithm), np.float32)


def search_factors(weights: Float32, statistics: InputStatistics, group: int, activation_bits: int) -> Float32:
    """The factors [K] by which inputs are best divided before rounding; ones where nothing is gained.

    Every pair of exponents is tried on the sample rows, weights and activations rounded plainly.
    """
    wanted = statistics.sample @ weights.T
    weight_peak = np.abs(weights).max(axis=0)
    best = np.ones(weights.shape[1], np.float32)
    least = _product_error(wanted, weights, statistics.sample, group, activation_bits)
    for a, b in itertools.product(_ACTIVATION_EXPONENTS, _WEIGHT_EXPONENTS):
        factors = input_factors(statistics.peak, weight_peak, a, b)
        error = _product_error(wanted, weights * factors, statistics.sample / factors, group, activation_bits)
        if error < least:
            best, least = factors, error
    return best


def round_rows(rows: Float32, bits: int) -> Float32:
    """Rows as the runtime quantises them: symmetric, one scale a row."""
    limit = np.float32(127 if bits == 8 else 32512)
    scale = np.abs(rows).max(axis=-1, keepdims=True) / limit
    return np.asarray(np.rint(rows / np.where(scale > 0, scale, 1)) * scale, np.float32)


def _product_error(wanted: Float32, weights: Float32, rows: Float32, group: int, activation_bits: int) -> float:
    grid = progressive_grid(weights, group) if group else channel_grid(weights)
    return float(np.square(round_rows(rows, activation_bits) @ grid.snap(weights).T - wanted).mean(dtype=np.float64))
