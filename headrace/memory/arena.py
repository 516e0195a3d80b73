"""The bytes of the page pool: one mapping of shared memory, private to the user, made once and never remapped."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError

AHEAD_BYTES = 24 * 2**20  # what is kept touched beyond the pages in use: a few large steps of prompts
_TOUCH_BYTES = 4 * 2**20  # about 4 ms of zeroing: short enough to stop at, long enough to cost nothing
_MADV_POPULATE_WRITE = 23  # Linux 5.14: fault pages in without changing what they hold


class Arena:
    """``pages`` pages of ``page_bytes`` bytes in one memory file that only this user can open.

    ``bytes`` is the numpy view, uint8 [pages, page_bytes]. Fresh memory is zero. The system zeroes each OS page when it is
    first used, at about 1 GB/s; :meth:`touch` and :meth:`touch_ahead` do that before a step has to wait for it.
    Huge pages are asked for and used where the system allows them for shared memory. Raises :class:`HeadraceError`
    ``invalid_setting`` when the memory can't be mapped.
    """

    def __init__(self, pages: int, page_bytes: int) -> None:
        if pages < 1 or page_bytes < 1:
            raise HeadraceError("invalid_value", f"can't map {pages} pages of {page_bytes} bytes", param="pages")
        self.pages = pages
        self.page_bytes = page_bytes
        size = pages * page_bytes
        self._descriptor = os.memfd_create("headrace-pages", os.MFD_CLOEXEC)
        try:
            os.fchmod(self._descriptor, 0o600)
            os.ftruncate(self._descriptor, size)
            self._mapping = mmap.mmap(self._descriptor, size, mmap.MAP_SHARED)
        except (OSError, ValueError, OverflowError) as error:
            os.close(self._descriptor)
            message = f"can't map a page pool of {size / 2**20:,.0f} MiB: {error}"
            raise HeadraceError("invalid_setting", message, param="pages") from None
        self.huge_pages = self._ask_for_huge_pages()
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._mapping, dtype=np.uint8).reshape(pages, page_bytes)
        self.touched_bytes = 0
        self._populate = _populate()
        self._touching = threading.Lock()
        self._wanted = threading.Event()
        self._asked = 0
        self._toucher: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes of the mapping."""
        return self.pages * self.page_bytes

    def fileno(self) -> int:
        """The memory file's descriptor, to be handed to another process of this user."""
        return self._descriptor

    def touch(self, pages: int) -> None:
        """Fault the first ``pages`` pages in, on this thread; contents stay as they are, so steps may run meanwhile.

        Does what is left of it: memory that was touched before is not visited again. Returns early when closed.
        """
        with self._touching:
            base, end = self.bytes.ctypes.data, min(pages, self.pages) * self.page_bytes
            while self.touched_bytes < end and not self._closed:
                start = self.touched_bytes
                length = min(_TOUCH_BYTES, end - start)
                if self._populate(base + start, length) == errno.EINVAL:  # an older kernel: reading faults shared memory in as well
                    self.bytes.reshape(-1)[start : start + length : mmap.PAGESIZE].max()
                self.touched_bytes = start + length

    def touch_ahead(self, pages: int) -> None:
        """Say that the first ``pages`` pages are in use: a thread keeps the next 24 MiB touched. O(1), never waits.

        Memory nobody needs is never taken from the system, and no step waits for what it needs.
        """
        if pages * self.page_bytes + AHEAD_BYTES // 2 <= self._asked * self.page_bytes or self._asked == self.pages:
            return
        self._asked = min(self.pages, pages + max(1, AHEAD_BYTES // self.page_bytes))
        if self._toucher is None:
            self._toucher = threading.Thread(target=self._keep_ahead, name="headrace-touch", daemon=True)
            self._toucher.start()
        self._wanted.set()

    def _keep_ahead(self) -> None:
        while not self._closed:
            self._wanted.wait()
            self._wanted.clear()
            self.touch(self._asked)

    def close(self) -> None:
        """Stop touching and give the memory back; views that others still hold keep it mapped until they go."""
        if self._closed:
            return
        self._closed = True
        self._wanted.set()
        if self._toucher is not None:
            self._toucher.join()
        self.bytes = np.empty((0, self.page_bytes), dtype=np.uint8)
        del self._mapping  # unmapped with its last view; mmap.close() would refuse while one lives
        os.close(self._descriptor)

    def _ask_for_huge_pages(self) -> bool:
        try:
            with open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", encoding="ascii") as file:
                mode = file.read()
            allowed = any(chosen in mode for chosen in ("[advise]", "[always]", "[within_size]"))
            if allowed:
                self._mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return False
        return allowed


def _populate() -> Callable[[int, int], int]:
    """madvise through ctypes, because that releases the interpreter lock; returns an errno, 0 when done."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def populate(address: int, length: int) -> int:
        start = address // mmap.PAGESIZE * mmap.PAGESIZE
        failed = madvise(start, address + length - start, _MADV_POPULATE_WRITE)
        code = ctypes.get_errno() if failed else 0
        if code not in (0, errno.EINVAL):
            message = f"the system has no memory left for the page pool: {os.strerror(code)}"
            raise HeadraceError("invalid_setting", message, param="pages")
        return code

    return populate
