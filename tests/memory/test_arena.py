"""The arena: private shared memory that holds what is written, whatever the toucher does."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest

from headrace.errors import HeadraceError
from headrace.memory.arena import Arena


def test_shape_zero_and_private() -> None:
    with Arena(7, 5000) as arena:
        assert arena.bytes.shape == (7, 5000)
        assert arena.bytes.dtype == np.uint8
        assert not arena.bytes.any()
        assert stat.S_IMODE(os.fstat(arena.fileno()).st_mode) == 0o600


def test_touch_faults_everything_in_and_keeps_contents() -> None:
    with Arena(300, 128 * 1024) as arena:
        generator = np.random.default_rng(1)
        written = generator.integers(0, 256, (300, 64), dtype=np.uint8)
        arena.bytes[:, :64] = written
        seen: list[tuple[int, int]] = []
        arena.touch(lambda done, total: seen.append((done, total)))
        assert seen[-1] == (arena.size, arena.size)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert np.array_equal(arena.bytes[:, :64], written)
        assert os.fstat(arena.fileno()).st_blocks * 512 >= arena.size


def test_background_touch_never_undoes_a_write() -> None:
    with Arena(200, 256 * 1024) as arena:
        arena.touch_in_background()
        for page in range(200):
            arena.bytes[page] = page % 251 + 1
        assert arena._toucher is not None
        arena._toucher.join()
        assert arena.touched_bytes == arena.size
        assert all((arena.bytes[page] == page % 251 + 1).all() for page in range(200))


def test_another_mapping_of_the_descriptor_sees_the_same_bytes() -> None:
    with Arena(3, 4096) as arena:
        arena.bytes[2, :4] = (1, 2, 3, 4)
        assert os.pread(arena.fileno(), 4, 2 * 4096) == b"\x01\x02\x03\x04"


def test_close_twice_and_with_a_view_left() -> None:
    arena = Arena(2, 4096)
    arena.bytes[1, 0] = 9
    view = arena.bytes[1]
    descriptor = arena.fileno()
    arena.touch_in_background()
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
