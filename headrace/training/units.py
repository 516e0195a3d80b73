"""A unit: the smallest piece of training that runs without looking up, a few milliseconds of a core's work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

UnitKind = Literal["forward", "backward", "head", "update", "file"]
PART_ROWS = 64  # rows that one thread takes at once: large enough for its products, small enough to stop behind


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """``run`` does it. ``work``: multiply-adds in units of 10⁹, what its time is foreseen from; ``tokens`` it brings forward by
    (a token counts once, when its backward pass, or its scoring, is over)."""

    kind: UnitKind
    work: float
    run: Callable[[], object]
    tokens: int = 0


def parts_of(rows: int, size: int = PART_ROWS) -> list[tuple[int, int]]:
    """(first, end) of the parts of so many rows: always the same, whatever runs them."""
    return [(first, min(first + size, rows)) for first in range(0, rows, size)]
