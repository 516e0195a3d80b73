"""Free runs against a naive bitmap."""

from __future__ import annotations

import random
from itertools import groupby, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.memory.free_runs import FreeRuns, runs_of


def naive_runs(bitmap: list[bool]) -> list[tuple[int, int]]:
    runs, start = [], 0
    for free, group in groupby(bitmap):
        length = len(list(group))
        if free:
            runs.append((start, length))
        start += length
    return runs


def naive_best(bitmap: list[bool], length: int) -> tuple[int, int]:
    runs = naive_runs(bitmap)
    fitting = [run for run in runs if run[1] >= length]
    if fitting:
        return min(fitting, key=lambda run: (run[1], run[0]))
    return max(runs, key=lambda run: (run[1], run[0]), default=(0, 0))


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_random_operations_agree_with_a_bitmap(total: int, seed: int) -> None:
    generator = random.Random(seed)
    free, bitmap = FreeRuns(), [False] * total
    for _ in range(120):
        taken = naive_runs([not bit for bit in bitmap])
        if generator.random() < 0.5 and taken:
            start, length = generator.choice(taken)
            offset = generator.randrange(length)
            count = generator.randint(1, length - offset)
            free.add(start + offset, count)
            bitmap[start + offset : start + offset + count] = [True] * count
        elif free.count:
            start, length = free.best(generator.randrange(1, total + 1))
            count = generator.randint(1, length)
            if generator.random() < 0.5:
                free.take(start, count)
                bitmap[start : start + count] = [False] * count
            else:
                first = free.take_last(start, count)
                assert first == start + length - count
                bitmap[first : first + count] = [False] * count
        assert sorted(free) == naive_runs(bitmap)
        assert free.count == sum(bitmap)
        wanted = generator.randrange(1, total + 2)
        assert free.best(wanted) == naive_best(bitmap, wanted)
        assert free.longest()[1] == max((length for _, length in naive_runs(bitmap)), default=0)
        page = generator.randrange(total)
        assert free.starting(page) == dict(naive_runs(bitmap)).get(page, 0)


@given(st.lists(st.integers(0, 30), unique=True))
def test_runs_of_a_list_say_the_same_pages_in_fewest_pieces(pages: list[int]) -> None:
    runs = runs_of(pages)
    assert [page for start, length in runs for page in range(start, start + length)] == pages
    assert all(a + n != b for (a, n), (b, _) in pairwise(runs))
