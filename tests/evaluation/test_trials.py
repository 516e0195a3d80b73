"""What experiments compare with must do the same work."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from headrace.evaluation.trials import PiecewiseTier
from headrace.memory.arena import Arena


@pytest.mark.parametrize("pieces", [1, 7, 60, 1000])
def test_pages_in_small_pieces_come_back_as_they_went(pieces: int, tmp_path: Path) -> None:
    with Arena(6, 40_960) as arena:
        tier = PiecewiseTier(arena, tmp_path, 8, pieces, lambda page: zlib.crc32(page.data))
        arena.bytes[:] = np.random.default_rng(3).integers(0, 256, arena.bytes.shape, np.uint8)
        before = arena.bytes.copy()
        tier.write(1, 3, 2)
        arena.bytes[:] = 0
        tier.read(4, 3, 2)
        assert (arena.bytes[4:] == before[1:3]).all()
        assert not arena.bytes[:4].any()
        tier.close()
