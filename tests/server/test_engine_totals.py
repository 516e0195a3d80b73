"""Counters over several engines of one model."""

from __future__ import annotations

from headrace.engine.wire import Gauges, MoveGauges, ViewGauges
from headrace.server.engine_totals import EngineTotals


def test_what_only_grows_goes_on_growing_and_the_rest_is_of_now() -> None:
    totals = EngineTotals()
    assert totals.with_engine(None) == Gauges()
    first = Gauges(
        running=3,
        pages_total=10,
        pages_free=7,
        steps=5,
        step_seconds=0.5,
        moves=MoveGauges(2, 3, 4, page_bytes=16),
        views=ViewGauges(5, 6, 7),
    )
    totals.add(first)
    left = totals.with_engine(None)
    assert (left.running, left.pages_total, left.pages_free, left.steps, left.step_seconds) == (0, 0, 0, 5, 0.5)
    assert (left.moves, left.views) == (MoveGauges(0, 0, 4, page_bytes=16), ViewGauges(0, 0, 7))
    now = totals.with_engine(Gauges(running=1, pages_total=20, steps=2, moves=MoveGauges(1, 1, 1, page_bytes=16)))
    assert (now.running, now.pages_total, now.steps) == (1, 20, 7)
    assert now.moves == MoveGauges(1, 1, 5, page_bytes=16)
    assert totals.with_engine(Gauges(steps=1)).moves == MoveGauges(0, 0, 4, page_bytes=16)
