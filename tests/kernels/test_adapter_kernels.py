"""The two products of an adapter against numpy, in the very same order of float steps, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.kernels import _native
from headrace.models.adapter import Codes, Float32, decode_bf16, round_bf16


def fma(a: Float32, b: Float32, c: Float32) -> Float32:
    """Rounded once: a product of float32 and bfloat16 is exact in float64, and so is the sum but in rare cases."""
    return np.asarray((a.astype(np.float64) * b + c).astype(np.float32))


def products(x: Float32, a: Codes, b: Codes, factors: Float32, scale: float) -> Float32:
    """Sixteen lanes left to right, the tree of the lanes, then ranks upwards."""
    lanes = np.zeros((len(x), len(a), 16), np.float32)
    weights = decode_bf16(a)
    for k in range(0, x.shape[1], 16):
        lanes = fma(weights[None, :, k : k + 16], x[:, None, k : k + 16], lanes)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    v = lanes[..., 0] * (factors * np.float32(scale))[:, None]
    panels = decode_bf16(b)
    out = np.zeros((len(x), len(b), 16), np.float32)
    for j in range(len(a)):
        out = fma(v[:, j, None, None], panels[None, :, j], out)
    return out.reshape(len(x), -1)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 33])
@pytest.mark.parametrize("rank", [1, 3, 8, 16, 21, 64])
def test_bits_of_both_products(isa: str, rows: int, rank: int) -> None:
    generator = np.random.default_rng(rows * 100 + rank)
    for inputs, panels in ((16, 1), (96, 5), (576, 12)):
        x = generator.standard_normal((rows, inputs), np.float32)
        a = round_bf16(generator.standard_normal((rank, inputs)))
        b = round_bf16(generator.standard_normal((panels, rank, 16)))
        factors = generator.uniform(-2, 2, rows).astype(np.float32)
        before = generator.standard_normal((rows, 16 * panels), np.float32)
        out = before.copy()
        _native.adapter_products(x, a, b, factors, 0.75, out)
        expected = before + products(x, a, b, factors, 0.75)
        assert out.tobytes() == expected.tobytes(), isa
        plain = x @ decode_bf16(a).T * (factors[:, None] * 0.75)
        whole = plain @ decode_bf16(b).transpose(1, 0, 2).reshape(rank, -1)
        np.testing.assert_allclose(expected - before, whole, rtol=1e-3, atol=1e-3 * np.abs(whole).max())


def test_sizes_are_checked() -> None:
    x, factors = np.zeros((2, 32), np.float32), np.zeros(2, np.float32)
    a, b, out = np.zeros((3, 32), np.uint16), np.zeros((2, 3, 16), np.uint16), np.zeros((2, 32), np.float32)
    _native.adapter_products(x, a, b, factors, 1.0, out)
    for rows, ranks, own in ((x[:, :24].copy(), a, factors), (x, a[:2].copy(), factors), (x, a, factors[:1].copy())):
        with pytest.raises(ValueError, match="don't fit"):
            _native.adapter_products(rows, ranks, b, own, 1.0, out)
