"""The bound is right for every span and every value in it, and the next larger ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.quantization.protective_range import ZeroDomain, group_scale, group_zero, protective_bound, safe_zero, stays_inside


def worst(bound: int, domain: ZeroDomain) -> tuple[int, int]:
    """Smallest and largest integer that any value of any span within ±bound is turned into: slowly, value by value."""
    least, most = 0, 0
    for low in range(-bound, bound + 1 if domain == "postscale" else 1):
        high = np.arange(max(low, 0) if domain == "prescale" else low, bound + 1)
        scale = group_scale(np.full_like(high, low), high)
        zero = group_zero(np.full_like(high, low), scale, domain)
        values = np.arange(low, bound + 1)[:, None]
        codes = np.clip(np.rint((values + zero) / scale), 0, 15)
        back = np.where(values <= high, codes * scale - zero, 0)
        least, most = min(least, int(back.min())), max(most, int(back.max()))
    return least, most


@pytest.mark.parametrize(("domain", "expected"), [("prescale", 119), ("postscale", 120)])
def test_bound_is_what_the_enumeration_finds(domain: ZeroDomain, expected: int) -> None:
    assert protective_bound(domain) == expected
    least, most = worst(expected, domain)
    assert least >= -127
    assert most <= 127


@pytest.mark.parametrize("domain", ["prescale", "postscale"])
def test_without_the_bound_groups_leave_int8(domain: ZeroDomain) -> None:
    assert not stays_inside(127, domain)
    assert worst(127, domain)[1] > 127
    assert not stays_inside(protective_bound(domain) + 1, domain)


def test_the_example_of_the_paper() -> None:
    low, high = np.asarray([-113]), np.asarray([120])
    scale = group_scale(low, high)
    assert scale == 16
    assert 15 * scale - group_zero(low, scale, "prescale") == 128
    assert 15 * scale - group_zero(low, scale, "postscale") == 127


def test_every_code_of_a_postscale_group_stays_inside() -> None:
    values = np.arange(-120, 121)
    low, high = (side.ravel() for side in np.meshgrid(values, values, indexing="ij"))
    low, high = low[low <= high], high[low <= high]
    scale = group_scale(low, high)
    zero = safe_zero(low, scale)
    assert (15 * scale - zero).max() == 127
    assert (-zero).min() == -120
    assert (low + zero >= 0).all()
    assert (15 * scale - zero >= high)[zero != -low].all(), "a shifted group still reaches its largest value"
