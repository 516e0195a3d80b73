"""The pool of simulations against the one that serves: the same counts and refusals for random use."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.memory.page_pool import PagePool
from headrace.placement.load import Load, freeness
from headrace.planning.dispatch import _freeness_with_one_more
from headrace.planning.numbered_pages import NumberedPages


@given(st.lists(st.tuples(st.sampled_from(("take", "reserve", "promised", "share", "release")), st.integers(0, 12)), max_size=80))
def test_counts_are_those_of_the_pool_that_serves(calls: list[tuple[str, int]]) -> None:
    pools = PagePool(40, 16), NumberedPages(40, 16)
    held: tuple[list[list[int]], list[list[int]]] = ([], [])
    for call, count in calls:
        answers = []
        for pool, mine in zip(pools, held, strict=True):
            if call == "take":
                taken = pool.allocate(count)
                mine.extend([taken] if taken else [])
                answers.append(None if taken is None else len(taken))
            elif call == "promised":
                promised = min(count, pool.reserved)
                mine.extend([pool.allocate_reserved(promised)] if promised else [])
            elif call == "share" and mine:
                pool.share(mine[count % len(mine)])
                mine.append(list(mine[count % len(mine)]))
            elif call == "release" and mine:
                answers.append(pool.release(mine.pop(count % len(mine))))
            elif call == "reserve":
                answers.append(int(pool.reserve(count)))
            pool.check_integrity(mine)
        assert answers[:1] == answers[1:]
        assert [(pool.free, pool.available, pool.held, pool.reserved) for pool in pools[:1]] == [
            (pool.free, pool.available, pool.held, pool.reserved) for pool in pools[1:]
        ]


def test_wrong_use_is_refused() -> None:
    pool = NumberedPages(4, 16)
    pages = pool.allocate(4)
    assert pages is not None
    assert pool.allocate(1) is None
    with pytest.raises(AssertionError):
        pool.check_integrity([])
    pool.release(pages)
    with pytest.raises(ValueError, match="free already"):
        pool.release(pages)
    with pytest.raises(ValueError, match="keep"):
        pool.keep(pages)


@given(st.integers(0, 50), st.integers(0, 9), st.integers(0, 9), st.integers(0, 90))
def test_the_quick_rank_is_the_freeness_with_one_more(held: int, running: int, waiting: int, queue: int) -> None:
    load = Load(50, held, running, waiting, queue=queue)
    assert _freeness_with_one_more(load) == freeness(replace(load, running=running + 1), whole_queue=True)
