"""The files of kept pages: who may read them, what a damaged, foreign or cut one gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.memory.arena import Arena
from headrace.memory.kept_file import KeptFile
from headrace.memory.kept_pages import KeptEntry, KeptJob, KeptPiece

SIZE = 4


def entry(slot: int) -> KeptEntry:
    return KeptEntry(slot, bytes([slot + 1] * 16), bytes([slot] * 4 * SIZE))


def fill(folder: Path, arena: Arena, slots: tuple[int, ...] = (3, 0, 5), identity: str = "a-1") -> None:
    file = KeptFile(arena, (folder, identity), 8, SIZE)
    for slot in slots:
        arena.bytes[slot] = slot + 7
        piece = KeptPiece(KeptJob(-1, []), 0, slot, slot, 1, True, [entry(slot)])
        file.describe([piece])
        file.write(slot, slot, 1)
    file.close()


def reopened(folder: Path, arena: Arena, slots: int = 8) -> list[KeptEntry]:
    file = KeptFile(arena, (folder, "a-1"), slots, SIZE)
    kept = file.entries()
    file.close()
    return kept


def test_what_was_written_is_there_in_order_of_writing(tmp_path: Path) -> None:
    with Arena(8, 4096) as arena:
        fill(tmp_path, arena)
        file = KeptFile(arena, (tmp_path, "a-1"), 8, SIZE)
        assert file.entries() == [entry(3), entry(0), entry(5)]
        arena.bytes[:] = 0
        file.read(1, 5, 1)
        assert (arena.bytes[1] == 12).all()
        file.close()


def test_only_the_user_can_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with Arena(8, 4096) as arena:
        fill(folder, arena)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("place", [0, 20, 28 + 5, 28 + 30])
def test_a_changed_bit_in_the_table_costs_pages_and_says_so(tmp_path: Path, place: int, caplog: pytest.LogCaptureFixture) -> None:
    with Arena(8, 4096) as arena:
        fill(tmp_path, arena)
        table = tmp_path / "a-1.table"
        data = bytearray(table.read_bytes())
        data[place] ^= 4
        table.write_bytes(data)
        kept = reopened(tmp_path, arena)
        assert set(kept) < {entry(3), entry(0), entry(5)}
        assert "damaged" in caplog.text
        fill(tmp_path, arena)
        assert len(reopened(tmp_path, arena)) == 3


@pytest.mark.parametrize("name", ["a-1.table", "a-1.pages"])
def test_any_cut_is_survived(tmp_path: Path, name: str) -> None:
    with Arena(8, 4096) as arena:
        fill(tmp_path, arena)
        size = (tmp_path / name).stat().st_size
        for length in range(size, -1, -max(1, size // 40)):
            os.truncate(tmp_path / name, length)
            file = KeptFile(arena, (tmp_path, "a-1"), 8, SIZE)
            assert set(file.entries()) <= {entry(3), entry(0), entry(5)}
            for one in file.entries():
                file.read(0, one.slot, 1)
                assert (arena.bytes[0] == one.slot + 7).all()
            file.close()


def test_a_smaller_cap_drops_what_lies_beyond(tmp_path: Path) -> None:
    with Arena(8, 4096) as arena:
        fill(tmp_path, arena)
        assert reopened(tmp_path, arena, 4) == [entry(3), entry(0)]
        assert (tmp_path / "a-1.pages").stat().st_size == 4 * 4096


def test_what_other_kernels_made_of_the_model_goes(tmp_path: Path) -> None:
    with Arena(8, 4096) as arena:
        fill(tmp_path, arena, identity="a-2")
        fill(tmp_path, arena, identity="b-1")
        held = KeptFile(arena, (tmp_path, "a-3"), 8, SIZE)
        fill(tmp_path, arena)
        assert {path.name for path in tmp_path.glob("*.pages")} == {"a-1.pages", "a-3.pages", "b-1.pages"}
        held.close()


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Arena(1, 4096) as arena, pytest.raises(HeadraceError) as caught:
        KeptFile(arena, (tmp_path / "file", "a-1"), 8, SIZE)
    assert caught.value.param == "prefix_disk_gib"
