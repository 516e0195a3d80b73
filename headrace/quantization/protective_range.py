"""How large first-level integers may be, so that no group's second level ever leaves int8: found by trying every span.

QServe ("W4A8KV4 quantization and system co-design", Lin et al.) calls it the protective range: a group's 4-bit codes are
multiplied by an integer that was rounded, so the largest code can overshoot the group's own largest value.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
ZeroDomain = Literal["prescale", "postscale"]

LARGEST_CODE = 15
LARGEST_INTEGER = 127


def group_scale(low: Integers, high: Integers) -> Integers:
    """The integer step of groups that span ``low`` to ``high``: their range in 15 steps, rounded, at least 1."""
    return np.maximum(1, np.rint((high - low) / LARGEST_CODE)).astype(np.int64)


def group_zero(low: Integers, scale: Integers, domain: ZeroDomain) -> Integers:
    """What is taken off code · scale. ``postscale`` has the resolution of 1, ``prescale`` that of ``scale``."""
    if domain == "postscale":
        return -low
    return np.clip(np.rint(-low / scale), 0, LARGEST_CODE).astype(np.int64) * scale


def stays_inside(bound: int, domain: ZeroDomain) -> bool:
    """Whether the smallest and the largest value of every span within ±``bound`` come back within ±127."""
    values = np.arange(-bound, bound + 1)
    low, high = (side.ravel() for side in np.meshgrid(values, values, indexing="ij"))
    # A prescale zero is an unsigned code, so its groups always hold 0.
    kept = low <= high if domain == "postscale" else (low <= 0) & (high >= 0)
    low, high = low[kept], high[kept]
    scale = group_scale(low, high)
    zero = group_zero(low, scale, domain)
    # Rounding keeps the order of values, so no value between the two ends comes back outside theirs.
    ends = [np.clip(np.rint((end + zero) / scale), 0, LARGEST_CODE) * scale - zero for end in (low, high)]
    return bool(ends[1].max() <= LARGEST_INTEGER and ends[0].min() >= -LARGEST_INTEGER)


def safe_zero(low: Integers, scale: Integers) -> Integers:
    """The postscale zero, but no code at all leaves int8: rounding with error feedback may use any.

    It differs only for narrow groups far above zero, which are counted from further below.
    """
    return np.maximum(group_zero(low, scale, "postscale"), LARGEST_CODE * scale - LARGEST_INTEGER)


@functools.cache
def protective_bound(domain: ZeroDomain = "postscale") -> int:
    """The largest ``bound`` for which :func:`stays_inside` holds: 119 for ``prescale``, 120 for ``postscale``."""
    return next(bound for bound in range(LARGEST_INTEGER, 0, -1) if stays_inside(bound, domain))
