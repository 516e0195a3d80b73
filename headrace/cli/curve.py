"""A curve drawn with characters: braille dots for many points, crosses for few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column


def curve(line: Points, marks: Points = (), *, width: int = 60, height: int = 8) -> list[str]:
    """Lines of text: ``line`` joined by dots, ``marks`` as crosses, y from the least to the most, x from the first to the last.

    Points that are not finite are left out; nothing comes of fewer than two.
    """
    line = [point for point in line if all(map(math.isfinite, point))]
    marks = [point for point in marks if all(map(math.isfinite, point))]
    if len(line) < 2:
        return []
    xs, ys = [x for x, _ in (*line, *marks)], [y for _, y in (*line, *marks)]
    left, wide = min(xs), max(xs) - min(xs) or 1.0
    low, high = min(ys), max(ys)
    tall = high - low or 1.0
    columns, rows = 2 * width - 1, 4 * height - 1
    cells = [[0] * width for _ in range(height)]
    for (x0, y0), (x1, y1) in pairwise(line):
        steps = max(1, round((x1 - x0) / wide * columns))
        for step in range(steps + 1):
            part = step / steps
            column = round((x0 + part * (x1 - x0) - left) / wide * columns)
            row = rows - round((y0 + part * (y1 - y0) - low) / tall * rows)
            cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    drawn = [[chr(0x2800 + cell) if cell else " " for cell in row] for row in cells]
    for x, y in marks:
        drawn[(rows - round((y - low) / tall * rows)) // 4][round((x - left) / wide * columns) // 2] = "×"
    labels = {0: f"{high:10.3g} ┤", height - 1: f"{low:10.3g} ┤"}
    body = [labels.get(number, " " * 11 + "│") + "".join(row).rstrip() for number, row in enumerate(drawn)]
    first, last = f"{left:g}", f"{left + wide:g}"
    return [*body, " " * 11 + "└" + "─" * width, " " * 12 + first + last.rjust(width - len(first))]
