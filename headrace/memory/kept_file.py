"""Two files of a folder that keep pages of the pool beyond the process: the pages in slots, and a table of what they are."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError
from headrace.memory.arena import Arena
from headrace.memory.disk_tier import Checksum, SlotFile
from headrace.memory.kept_pages import KeptEntry, KeptPiece

logger = logging.getLogger("headrace.memory.kept_file")

_MAGIC = b"headrace pages 1"
_NAME = 16


class KeptFile(SlotFile):
    """``slots`` places of one page each in the files ``<identity>.pages`` and ``<identity>.table`` of ``folder``.

    ``identity``: everything that a page's bytes depend on beside its tokens. The table has a row a slot: name, tokens, the sum
    of the page's bytes, and a sum of the row. A row is cleared before its page is overwritten and written when the page is
    there, so that a process may die at any time; what the system loses on top of that (order of writes, power) the
    sums find, and a wrong sum is a page that is not kept. Only this user can open the files, and one process at a time uses them.

    Raises ``BlockingIOError`` when another process does, and HeadraceError ``invalid_setting`` for a folder that can't be used.
    """

    def __init__(
        self, arena: Arena, place: tuple[Path, str], slots: int, page_tokens: int, checksum: Checksum | None = None
    ) -> None:
        folder, identity = place
        self._row = np.dtype(
            [("name", "u1", _NAME), ("tokens", "u1", 4 * page_tokens), ("sum", "<u8"), ("age", "<u8"), ("check", "<u4")]
        )
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.chmod(folder, 0o700)
            self._table = _open(folder / f"{identity}.table", 0)
        except OSError as error:
            raise _unusable(folder, error) from None
        try:
            fcntl.flock(self._table, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                handle, direct = _open(folder / f"{identity}.pages", os.O_DIRECT), True
            except OSError:
                handle, direct = _open(folder / f"{identity}.pages", 0), False
            super().__init__(arena, handle, slots, checksum, direct=direct)
        except BlockingIOError:
            os.close(self._table)
            raise
        except OSError as error:
            os.close(self._table)
            raise _unusable(folder, error) from None
        self._rows = np.zeros(slots, self._row)
        self._ages = 0
        _remove_others(folder, identity)
        self._load(os.fstat(handle).st_size)

    def entries(self) -> list[KeptEntry]:
        """What the files hold, the oldest first."""
        used = np.flatnonzero(self._rows["check"])
        order = used[np.argsort(self._rows["age"][used], kind="stable")]
        return [KeptEntry(int(slot), self._rows["name"][slot].tobytes(), self._rows["tokens"][slot].tobytes()) for slot in order]

    def describe(self, pieces: Sequence[KeptPiece]) -> None:
        """Say what is going to be written where. Call before the pieces are carried."""
        for piece in pieces:
            for entry in piece.entries:
                row = self._rows[entry.slot]
                row["name"] = np.frombuffer(entry.name, np.uint8)
                row["tokens"] = np.frombuffer(entry.tokens, np.uint8)

    def write(self, page: int, slot: int, count: int) -> None:
        """Copy adjacent pages to adjacent slots and enter them in the table. Raises OSError, ``ENOSPC`` when the disk is full."""
        rows = self._rows[slot : slot + count]
        self._put(slot, np.zeros(count, self._row))
        super().write(page, slot, count)
        for offset in range(count):
            self._ages += 1
            rows["sum"][offset] = self._sums[slot + offset]
            rows["age"][offset] = self._ages
            rows["check"][offset] = _check(rows[offset])
        self._put(slot, rows)

    def close(self) -> None:
        """Write out what the system still holds back, and let others use the files."""
        super().close()
        os.close(self._table)

    def _load(self, size: int) -> None:
        head = _MAGIC + self._row.itemsize.to_bytes(4, "little") + self.slot_bytes.to_bytes(8, "little")
        data = b""
        if os.fstat(self._table).st_size:
            data = os.pread(self._table, len(head) + self.slots * self._row.itemsize, 0)
        if data and data[: len(head)] != head:
            logger.warning("the kept pages are of another format, or damaged, and are not used")
            data = b""
        if not data:
            os.ftruncate(self._table, 0)
            os.pwrite(self._table, head, 0)
        self._head = len(head)
        known = np.frombuffer(data, self._row, max(0, len(data) - len(head)) // self._row.itemsize, min(len(head), len(data)))
        damaged = 0
        for slot in np.flatnonzero(known["age"]):
            row = known[slot]
            if int(row["check"]) == _check(row) and (int(slot) + 1) * self.slot_bytes <= size:
                self._rows[slot] = row
                self._sums[slot] = row["sum"]
                self._ages = max(self._ages, int(row["age"]))
            else:
                damaged += 1
        if damaged:
            logger.warning("%d kept pages are damaged and will be computed again", damaged)
        if size > self.slots * self.slot_bytes:
            os.ftruncate(self._file, self.slots * self.slot_bytes)
            os.ftruncate(self._table, self._head + self.slots * self._row.itemsize)
        self._allocated = min(size, self.slots * self.slot_bytes)

    def _put(self, slot: int, rows: np.ndarray) -> None:
        data = rows.tobytes()
        if os.pwrite(self._table, data, self._head + slot * self._row.itemsize) != len(data):
            raise OSError(errno.ENOSPC, "the table of kept pages could not be written")


def _check(row: np.void) -> int:
    """Never 0, which stands for a blank row."""
    return zlib.crc32(row.tobytes()[:-4]) or 1


def _open(path: Path, flag: int) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flag, 0o600)
    os.fchmod(handle, 0o600)
    return handle


def _unusable(folder: Path, error: OSError) -> HeadraceError:
    return HeadraceError("invalid_setting", f"can't keep pages in {folder}: {error}", param="prefix_disk_gib")


def _remove_others(folder: Path, identity: str) -> None:
    """Files of the same model made by other kernels or in another format are of no use to anybody; those in use stay."""
    family = identity.partition("-")[0]
    for table in folder.glob(f"{family}-*.table"):
        if table.stem == identity:
            continue
        try:
            handle = _open(table, 0)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            table.with_suffix(".pages").unlink(missing_ok=True)
            table.unlink(missing_ok=True)
        except OSError as error:
            logger.debug("%s stays: %s", table.name, error)
        finally:
            os.close(handle)
