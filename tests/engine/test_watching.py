"""What the rows of a step were computed for, and reports only while somebody watches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.watching import StepWatch, rows_of
from headrace.scheduling.item import Item, ItemKind
from headrace.scheduling.step import Slice, Step


def piece(prompt: int, known: int, start: int, count: int, kind: ItemKind = ItemKind.GENERATE) -> Slice:
    return Slice(Item(1, kind, [0] * known, prompt, 100), start, count, 0)


@pytest.mark.parametrize(
    ("slice_", "rows"),
    [
        (piece(10, 10, 0, 10), {"prompt": 10}),
        (piece(10, 10, 4, 3), {"prompt": 3}),
        (piece(10, 14, 13, 1), {"decode": 1}),
        (piece(10, 14, 13, 5), {"decode": 1, "verify": 4}),
        (piece(10, 14, 0, 14), {"prompt": 10, "decode": 1, "recompute": 3}),
        (piece(10, 14, 11, 2), {"recompute": 2}),
        (piece(10, 10, 0, 10, ItemKind.EMBED), {"embed": 10}),
    ],
)
def test_rows_by_kind(slice_: Slice, rows: dict[str, int]) -> None:
    assert dict(rows_of(slice_)) == rows


@given(st.integers(1, 40), st.integers(0, 40), st.data())
def test_every_row_has_one_kind(prompt: int, made: int, data: st.DataObject) -> None:
    known = prompt + made
    start = data.draw(st.integers(0, known - 1))
    count = data.draw(st.integers(1, known - start + 4))
    assert sum(rows for _, rows in rows_of(piece(prompt, known, start, count))) == count


def test_nothing_is_seen_while_nobody_watches() -> None:
    watch = StepWatch()
    step = Step((piece(4, 5, 4, 1),), predicted=0.25)
    assert watch.see(step, {}, 0) is None
    watch.extend(5.0)
    seen = watch.see(step, {}, 3)
    assert seen is not None
    report = seen.ended(0.0)
    assert (report.rows, report.sequences, report.waiting, report.predicted) == ({"decode": 1}, 1, 3, 0.25)
    late = StepWatch()
    late.extend(-1.0)
    assert late.see(step, {}, 0) is None
