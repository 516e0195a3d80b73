"""Norm, quantisation and elementary functions: against float64, and the same bits on every instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from headrace.kernels import _native
from headrace.kernels.formats import instruction_sets

ISAS = [row.name for row in instruction_sets() if row.runnable and row.automatic]


@pytest.fixture(autouse=True)
def best_isa() -> Iterator[None]:
    yield
    _native.set_isa("auto")


def mapped(function: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    out = np.empty_like(x)
    _native.map(function, x, out)
    return out


def same_on_all(compute: Callable[[], npt.NDArray[np.generic]]) -> None:
    results = []
    for isa in ISAS:
        _native.set_isa(isa)
        results.append(compute().tobytes())
    assert len(set(results)) == 1


def test_exp_is_accurate_to_two_ulp() -> None:
    x = np.linspace(-87.0, 88.0, 1 << 18, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(mapped("exp", x) - exact) / np.spacing(exact.astype(np.float32))
    assert error.max() < 2.0


def test_exp_of_zero_is_one_and_ends_are_clamped() -> None:
    x = np.array([0.0, -0.0, -1e30, 1e30, -np.inf, np.inf, -88.0, 89.0] * 2, np.float32)
    got = mapped("exp", x)
    assert got[0] == 1.0
    assert got[1] == 1.0
    assert np.isfinite(got).all()
    assert (got[[2, 4, 6]] < 2e-38).all()
    assert (got[[3, 5, 7]] > 1e38).all()


def test_powers_of_two_are_accurate_to_two_ulp() -> None:
    x = np.linspace(-126.0, 0.0, 1 << 18, dtype=np.float32)
    exact = np.exp2(x.astype(np.float64))
    error = np.abs(mapped("power_of_two", x) - exact) / np.spacing(exact.astype(np.float32))
    assert error.max() < 2.0
    ends = mapped("power_of_two", np.array([0.0, -0.0, -1.0, -126.0, -127.0, -1e30, -np.inf, 5.0] * 2, np.float32))
    assert ends[:8].tolist() == [1.0, 1.0, 0.5, *[2.0**-126] * 4, 32.0]


@pytest.mark.parametrize("function", ["silu", "gelu_tanh"])
def test_activations_follow_their_definition(function: str) -> None:
    x = np.linspace(-30, 30, 1 << 14, dtype=np.float32)
    wide = x.astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    exact = wide / (1 + np.exp(-wide)) if function == "silu" else 0.5 * wide * (1 + np.tanh(inner))
    assert np.abs(mapped(function, x) - exact).max() < 4e-6


@pytest.mark.parametrize("function", ["exp", "silu", "gelu_tanh", "power_of_two"])
def test_functions_have_the_same_bits_everywhere(function: str) -> None:
    x = (np.random.default_rng(3).standard_normal(1 << 14) * 30).astype(np.float32)
    x[:16] = [0, -0.0, np.inf, -np.inf, 1e-40, -1e-40, 88, -88, 87.3, -87.3, 1, -1, 0.5, -0.5, 3e38, -3e38]
    same_on_all(lambda: mapped(function, x))


@pytest.mark.parametrize("width", [16, 64, 96, 576, 640, 2048])
def test_norm_divides_by_root_mean_square(width: int) -> None:
    generator = np.random.default_rng(width)
    x = (generator.standard_normal(width) * 5).astype(np.float32)
    gain = generator.standard_normal(width).astype(np.float32)

    def compute() -> npt.NDArray[np.float32]:
        out = np.empty_like(x)
        _native.norm(x, gain, 1e-5, out)
        return out

    wide = x.astype(np.float64)
    np.testing.assert_allclose(compute(), wide / np.sqrt((wide**2).mean() + 1e-5) * gain, rtol=2e-6, atol=1e-7)
    same_on_all(compute)


def quantised(x: npt.NDArray[np.float32]) -> tuple[float, npt.NDArray[np.int8], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    planes = np.empty(2 * x.size, np.int8)
    sums16, sums32 = np.empty(x.size // 16, np.int32), np.empty(x.size // 32, np.int32)
    return _native.quantise(x, planes, sums16, sums32), planes, sums16, sums32


@pytest.mark.parametrize("spread", [1e-20, 1.0, 1e20])
def test_quantised_row_recomposes(spread: float) -> None:
    x = (np.random.default_rng(5).standard_normal(576) * spread).astype(np.float32)
    scale, planes, sums16, sums32 = quantised(x)
    groups = planes.reshape(-1, 2, 32).astype(np.int64)
    codes = (groups[:, 0] * 256 + groups[:, 1]).reshape(-1)
    assert np.abs(codes).max() == 32512
    assert np.abs(codes * np.float64(scale) - x).max() <= 0.501 * scale
    np.testing.assert_array_equal(sums16, codes.reshape(-1, 16).sum(1))
    np.testing.assert_array_equal(sums32, codes.reshape(-1, 32).sum(1))
    same_on_all(lambda: quantised(x)[1])


def test_rows_without_size_become_zero() -> None:
    for row in (np.zeros(64, np.float32), np.full(64, 1e-38, np.float32)):
        scale, planes, sums16, sums32 = quantised(row)
        assert scale == 0.0
        assert not planes.any()
        assert not sums16.any()
        assert not sums32.any()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 63])
def test_a_broken_value_breaks_its_whole_row_visibly(broken: float, place: int) -> None:
    x = np.ones(64, np.float32)
    x[place] = broken
    for isa in ISAS:
        _native.set_isa(isa)
        assert np.isnan(quantised(x)[0])
