"""The disk as a tier below the page pool: one file without a name that grows as it is used, past the page cache."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.memory.arena import Arena

SECTOR = 4096
"""Offsets, lengths and addresses of direct I/O are multiples of this."""
_GROW_BYTES = 64 * 2**20

Checksum = Callable[[npt.NDArray[np.uint8]], int]
"""At most 64 bits that tell a page's bytes from damaged ones; it releases the interpreter lock."""
_Call = Callable[[int, memoryview, int], int]


class SlotFile:
    """``slots`` places of one page each in the open ``file``, which it closes; pages lie in ``arena``.

    Space is taken from the file system in pieces of 64 MiB when it is first needed. Direct I/O (``direct``: the file is open for
    it) keeps pages out of the page cache, which would only be more RAM; where the file system has none, written data are
    flushed and dropped from the cache. Each page is summed before it is written and after it was read: what comes back is what
    went, or an error.
    """

    def __init__(self, arena: Arena, file: int, slots: int, checksum: Checksum | None = None, *, direct: bool) -> None:
        self.slot_bytes = slot_bytes(arena.page_bytes)
        self.slots = slots
        self._arena = arena
        self._allocated = 0
        self._checksum = checksum or _crc
        self._sums = np.zeros(slots, np.uint64)
        self._file, self.direct = file, direct
        self._bounce: mmap.mmap | None = None

    def write(self, page: int, slot: int, count: int) -> None:
        """Copy adjacent pages to adjacent slots. Raises OSError, ``ENOSPC`` when the disk is full."""
        self._grow((slot + count) * self.slot_bytes)
        view, padded = self._view(page, count)
        for offset in range(count):
            whole = self._page(page + offset)
            self._sums[slot + offset] = self._checksum(whole)
            if padded:
                start = offset * self.slot_bytes
                view[start : start + self._arena.page_bytes] = whole.data
        self._carry(os.pwrite, view, slot * self.slot_bytes)
        if not self.direct:
            os.fdatasync(self._file)
            os.posix_fadvise(self._file, slot * self.slot_bytes, len(view), os.POSIX_FADV_DONTNEED)

    def read(self, page: int, slot: int, count: int) -> None:
        """Copy adjacent slots to adjacent pages. Raises OSError, ``EIO`` also for bytes that are not there or damaged."""
        view, padded = self._view(page, count)
        self._carry(_pread_into, view, slot * self.slot_bytes)
        if not self.direct:
            os.posix_fadvise(self._file, slot * self.slot_bytes, len(view), os.POSIX_FADV_DONTNEED)
        for offset in range(count):
            if padded:
                start = offset * self.slot_bytes
                here = self._arena.bytes[page + offset]
                here[...] = np.frombuffer(view[start : start + self._arena.page_bytes], np.uint8).reshape(here.shape)
            if self._checksum(self._page(page + offset)) != self._sums[slot + offset]:
                raise OSError(errno.EIO, "the file is damaged: a page did not come back as it went")

    def close(self) -> None:
        """Give the space back."""
        os.close(self._file)

    def _page(self, page: int) -> npt.NDArray[np.uint8]:
        """A page's bytes; a copy of them when they lie in strips."""
        return np.ascontiguousarray(self._arena.bytes[page]).reshape(-1)

    def _carry(self, call: _Call, view: memoryview, offset: int) -> None:
        """Carry all bytes of adjacent pages to or from the file."""
        done = 0
        while done < len(view):
            count = call(self._file, view[done:], offset + done)
            if count <= 0:
                raise OSError(errno.EIO, "the swap file ends too early")
            done += count

    def _view(self, page: int, count: int) -> tuple[memoryview, bool]:
        """Memory to move from or to; True when it is not the pages themselves but a buffer beside them."""
        if self.slot_bytes == self._arena.page_bytes and self._arena.strips == 1:
            return self._arena.bytes[page : page + count].reshape(-1).data, False
        size = count * self.slot_bytes
        if self._bounce is None or len(self._bounce) < size:
            self._bounce = mmap.mmap(-1, size)
        return memoryview(self._bounce)[:size], True

    def _grow(self, size: int) -> None:
        if size > self._allocated:
            wanted = min(self.slots * self.slot_bytes, -(-size // _GROW_BYTES) * _GROW_BYTES)
            os.posix_fallocate(self._file, self._allocated, wanted - self._allocated)
            self._allocated = wanted


class DiskTier(SlotFile):
    """A slot file in ``folder`` for pages that leave the pool for a while.

    It has no name from the start (``O_TMPFILE``, or unlinked before its first byte), so that nothing is left behind however the
    process ends, and only this process can read what it holds. Raises HeadraceError ``invalid_setting``.
    """

    def __init__(self, arena: Arena, folder: Path, slots: int, checksum: Checksum | None = None) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file, direct = _open_nameless(folder)
        except OSError as error:
            raise HeadraceError("invalid_setting", f"can't make a file to swap to in {folder}: {error}", param="swap_dir") from None
        super().__init__(arena, file, slots, checksum, direct=direct)


def slot_bytes(page_bytes: int) -> int:
    """Bytes of the tier that one page takes: whole sectors."""
    return -(-page_bytes // SECTOR) * SECTOR


def lies_in_memory(folder: Path) -> bool:
    """True for a folder in a file system that is RAM itself."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    for line in mounts.splitlines():
        place, _, kind = line.partition(" - ")
        if place.split()[2] == wanted:
            return kind.split()[0] in ("tmpfs", "ramfs")
    return False


def _open_nameless(folder: Path) -> tuple[int, bool]:
    """A file without a name, and whether it does direct I/O."""
    for flag in (os.O_DIRECT, 0):
        with contextlib.suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | flag, 0o600), bool(flag)
    handle, name = tempfile.mkstemp(prefix="headrace-swap-", dir=folder)
    os.unlink(name)
    return handle, False


def _crc(page: npt.NDArray[np.uint8]) -> int:
    return zlib.crc32(page.data)


def _pread_into(file: int, view: memoryview, offset: int) -> int:
    return os.preadv(file, [view], offset)
