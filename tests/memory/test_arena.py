"""The arena: private shared memory that holds what is written, whatever the toucher does."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable

import numpy as np
import pytest

from headrace.errors import HeadraceError
from headrace.memory.arena import AHEAD_BYTES, Arena


def test_shape_zero_and_private() -> None:
    with Arena(7, 5000) as arena:
        assert arena.bytes.shape == (7, 5000)
        assert arena.bytes.dtype == np.uint8
        assert not arena.bytes.any()
        assert stat.S_IMODE(os.fstat(arena.fileno()).st_mode) == 0o600


def _resident(arena: Arena) -> int:
    return os.fstat(arena.fileno()).st_blocks * 512


def test_touch_faults_pages_in_and_keeps_contents() -> None:
    with Arena(300, 128 * 1024) as arena:
        generator = np.random.default_rng(1)
        written = generator.integers(0, 256, (100, 64), dtype=np.uint8)
        arena.bytes[:100, :64] = written
        arena.touch(200)
        assert arena.touched_bytes == 200 * 128 * 1024 <= _resident(arena) < arena.size
        arena.touch(50)
        arena.touch(10_000)
        assert arena.touched_bytes == arena.size == _resident(arena)
        assert np.array_equal(arena.bytes[:100, :64], written)


def test_touching_ahead_never_undoes_a_write() -> None:
    with Arena(200, 256 * 1024) as arena:
        for page in range(200):
            arena.touch_ahead(page)
            arena.bytes[page] = page % 251 + 1
        _wait_for(lambda: arena.touched_bytes == arena.size)
        assert all((arena.bytes[page] == page % 251 + 1).all() for page in range(200))


def test_memory_far_ahead_is_left_to_the_system() -> None:
    with Arena(4000, 256 * 1024) as arena:
        arena.touch_ahead(0)
        _wait_for(lambda: arena.touched_bytes >= AHEAD_BYTES)
        assert _resident(arena) == AHEAD_BYTES
        arena.touch_ahead(150)
        _wait_for(lambda: arena.touched_bytes == AHEAD_BYTES + 150 * 256 * 1024)


def _wait_for(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_another_mapping_of_the_descriptor_sees_the_same_bytes() -> None:
    with Arena(3, 4096) as arena:
        arena.bytes[2, :4] = (1, 2, 3, 4)
        assert os.pread(arena.fileno(), 4, 2 * 4096) == b"\x01\x02\x03\x04"


def test_close_twice_and_with_a_view_left() -> None:
    arena = Arena(2, 4096)
    arena.bytes[1, 0] = 9
    view = arena.bytes[1]
    descriptor = arena.fileno()
    arena.touch_ahead(0)
    arena.close()
    arena.close()
    assert view[0] == 9
    assert arena.bytes.size == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize(("pages", "page_bytes"), [(0, 4096), (1, 0), (-1, 4096), (2**40, 2**30)])
def test_impossible_sizes_are_refused(pages: int, page_bytes: int) -> None:
    with pytest.raises(HeadraceError) as caught:
        Arena(pages, page_bytes)
    assert caught.value.param == "pages"


def test_memory_given_up_goes_back_and_neighbours_keep_theirs() -> None:
    size = 10_000  # no multiple of the system's pages
    with Arena(40, size) as arena:
        arena.bytes[:] = 7
        full = _resident(arena)
        assert arena.give_up(10, 20)
        assert full - _resident(arena) > 19 * size - 2 * 4096
        assert (arena.bytes[:10] == 7).all()
        assert (arena.bytes[30:] == 7).all()
        assert not arena.bytes[11:29].any()
        arena.bytes[10:30] = 9
        assert (arena.bytes[10:30] == 9).all()
        assert (_resident(arena), arena.bytes[29, -1], arena.bytes[30, 0]) == (full, 9, 7)
