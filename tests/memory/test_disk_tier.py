"""The swap file: bytes come back as they went, whatever the page size; nothing is left behind; a full disk is an error."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import HeadraceError
from headrace.memory.arena import Arena
from headrace.memory.disk_tier import DiskTier, lies_in_memory
from headrace.memory.lodging import Transfer
from headrace.memory.mover import Mover
from headrace.memory.moves import MoveOptions, Moves
from headrace.memory.page_pool import PagePool


@pytest.mark.parametrize(("page_bytes", "strips"), [(16, 1), (4096, 1), (5000, 1), (5000, 4), (368_640, 1), (368_640, 90)])
def test_runs_come_back_as_they_went(page_bytes: int, strips: int, tmp_path: Path) -> None:
    with Arena(12, page_bytes, strips) as arena:
        tier = DiskTier(arena, tmp_path, 8)
        arena.bytes[:] = np.random.default_rng(1).integers(0, 256, arena.bytes.shape, np.uint8)
        before = arena.bytes.copy()
        tier.write(2, 4, 3)
        tier.write(9, 1, 1)
        arena.bytes[:] = 0
        tier.read(6, 4, 3)
        tier.read(0, 1, 1)
        assert (arena.bytes[6:9] == before[2:5]).all()
        assert (arena.bytes[0] == before[9]).all()
        assert not arena.bytes[1:6].any()
        assert list(tmp_path.iterdir()) == [], "the file has no name"
        tier.close()


def test_what_was_never_written_can_not_be_read(tmp_path: Path) -> None:
    with Arena(4, 4096) as arena:
        tier = DiskTier(arena, tmp_path, 4)
        with pytest.raises(OSError, match="ends too early") as caught:
            tier.read(0, 2, 1)
        assert caught.value.errno == errno.EIO
        tier.close()


@pytest.mark.parametrize("page_bytes", [4096, 5000])
def test_damaged_pages_are_not_taken_for_whole_ones(page_bytes: int, tmp_path: Path) -> None:
    with Arena(4, page_bytes) as arena:
        tier = DiskTier(arena, tmp_path, 4)
        arena.bytes[:] = np.random.default_rng(2).integers(0, 256, arena.bytes.shape, np.uint8)
        tier.write(0, 0, 4)
        flip_bit(tier, tier.slot_bytes * 2 + 77)
        tier.read(0, 0, 2)
        with pytest.raises(OSError, match="did not come back") as caught:
            tier.read(1, 1, 3)
        assert caught.value.errno == errno.EIO
        tier.write(0, 2, 1)
        tier.read(1, 2, 1)
        tier.close()


def flip_bit(tier: DiskTier, offset: int) -> None:
    """Change one bit of the swap file, on the disk itself."""
    start = offset // 4096 * 4096
    with mmap.mmap(-1, 4096) as sector:
        assert os.preadv(tier._file, [sector], start) == 4096
        sector[offset - start] ^= 4
        assert os.pwrite(tier._file, sector, start) == 4096


def test_a_file_system_without_nameless_files_or_direct_io_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "no such thing here")

    with Arena(4, 4096) as arena:
        with monkeypatch.context() as patched:
            patched.setattr(os, "O_TMPFILE", 1 << 30)
            tier = DiskTier(arena, tmp_path, 4)
        assert not tier.direct
        assert list(tmp_path.iterdir()) == []
        arena.bytes[1] = 7
        tier.write(1, 0, 1)
        tier.read(3, 0, 1)
        assert (arena.bytes[3] == 7).all()
        tier.close()


def test_a_folder_that_can_not_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Arena(1, 4096) as arena, pytest.raises(HeadraceError) as caught:
        DiskTier(arena, tmp_path / "file" / "below", 1)
    assert caught.value.param == "swap_dir"


def test_memory_file_systems_are_known() -> None:
    assert lies_in_memory(Path("/dev/shm"))
    assert not lies_in_memory(Path("/proc"))


def test_nothing_is_left_behind_by_a_kill(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, time\n"
        "from headrace.memory.arena import Arena\n"
        "from headrace.memory.disk_tier import DiskTier\n"
        "arena = Arena(4, 4096)\n"
        "tier = DiskTier(arena, pathlib.Path(sys.argv[1]), 1000)\n"
        "tier.write(0, 0, 4)\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []


class _BrokenTier:
    """Raises what it is told to."""

    slot_bytes = 16

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def write(self, page: int, slot: int, count: int) -> None:
        self.begun.set()
        self.go_on.wait(10)
        raise self.error

    def read(self, page: int, slot: int, count: int) -> None:
        raise self.error

    def close(self) -> None:
        self.begun.clear()


def _one_transfer() -> tuple[Moves, Transfer]:
    pool = PagePool(4, 16)
    moves = Moves(pool, MoveOptions(8))
    pages = pool.allocate(2)
    assert pages is not None
    assert moves.leave(1, pages, 20)
    return moves, moves.issue(100)[0]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("a fault of our own")])
def test_the_mover_tells_of_failures_and_lives_on(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    mover: Mover[Transfer] = Mover(_BrokenTier(error))
    assert isinstance(mover.tier, _BrokenTier)
    mover.tier.go_on.set()
    for _ in range(2):
        moves, transfer = _one_transfer()
        mover.start([transfer])
        mover.wait(10)
        (one,) = mover.finished()
        assert one.transfer is transfer
        assert one.error is not None
        moves.done(transfer, carried=False)
        assert moves.lost == [1]
        assert moves.pool.free == 4
        moves.check_integrity()
    mover.close()


def test_long_pieces_are_cut_to_what_may_be_under_way() -> None:
    pool = PagePool(16, 16)
    moves = Moves(pool, MoveOptions(16, run_pages=16))
    pages = pool.allocate(10)
    assert pages is not None
    assert moves.leave(1, list(pages), 150)
    carried: list[int] = []
    while moves.busy:
        issued = moves.issue(4)
        assert sum(transfer.count for transfer in issued) <= 4
        for transfer in issued:
            assert [page - slot for page, slot in zip(transfer.pages, transfer.slots, strict=True)] == [
                transfer.page - transfer.slot
            ] * transfer.count
            carried += transfer.pages
            moves.done(transfer, carried=True)
        moves.check_integrity()
    assert carried == pages
    assert pool.free == 16
    assert moves.issue(0) == []


def test_closing_drops_what_has_not_begun() -> None:
    tier = _BrokenTier(OSError("late"))
    mover: Mover[Transfer] = Mover(tier)
    transfers = [_one_transfer()[1] for _ in range(5)]
    mover.start(transfers)
    tier.begun.wait(10)
    tier.go_on.set()
    mover.close()
    assert len(mover.finished()) < 5
