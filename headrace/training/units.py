"""A unit: the smallest piece of training that runs without looking up, about two milliseconds of work for all cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

UnitKind = Literal["attention", "attention back", "mlp", "mlp back", "head", "loss", "update", "file"]
"""Units of one kind take time as their work says; of two kinds they need not."""

PART_ROWS = 32  # rows that one thread takes at once: enough for its products (nine tenths of the rate), few enough to stop behind


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
