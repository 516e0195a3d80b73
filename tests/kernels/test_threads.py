"""The pool runs every tile exactly once, whatever its size, and survives callers from several threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from headrace.kernels._native import ThreadPool


def wanted(tiles: int, regions: int) -> list[int]:
    counts = [0] * tiles
    for region in range(regions):
        for tile in range(region % tiles + 1):
            counts[tile] += 1
    return counts


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("tiles", [1, 2, 7, 64])
def test_every_tile_runs_once(threads: int, tiles: int) -> None:
    pool = ThreadPool(threads)
    assert pool.cover(tiles, 4000) == wanted(tiles, 4000)


def test_size_changes_between_regions() -> None:
    pool = ThreadPool(1)
    for threads in (2, 1, 4, 2, 2, 1, 3):
        pool.resize(threads)
        assert pool.threads == threads
        assert pool.cover(9, 200) == wanted(9, 200)


def test_several_callers_take_turns() -> None:
    pool = ThreadPool(2)
    with ThreadPoolExecutor(3) as callers:
        results = list(callers.map(lambda _: pool.cover(5, 300), range(6)))
    assert results == [wanted(5, 300)] * 6


def test_sleeping_workers_wake() -> None:
    import time

    pool = ThreadPool(2)
    for _ in range(20):
        time.sleep(0.002)  # longer than workers spin
        assert pool.cover(8, 8) == wanted(8, 8)


NO_ROOM = """
import resource
from headrace.kernels._native import ThreadPool
pool = ThreadPool(2)
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
for attempt in (lambda: ThreadPool(200), lambda: pool.resize(200)):
    try:
        attempt()
    except RuntimeError as error:
        assert "temporarily unavailable" in str(error), error
    else:
        raise SystemExit("200 stacks should not fit")
assert pool.threads == 1
assert pool.cover(3, 2) == [2, 1, 0]
"""


def test_a_system_without_room_for_threads_is_an_error_and_not_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", NO_ROOM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_bounds(threads: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 256"):
        ThreadPool(threads)
    pool = ThreadPool(1)
    with pytest.raises(ValueError, match="between 1 and 256"):
        pool.resize(threads)


def test_what_an_engine_froze_is_not_called_leaked() -> None:
    code = "import gc; from headrace.kernels import _native as n; held = [n.ThreadPool(1)]; held.append(held); gc.freeze()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
