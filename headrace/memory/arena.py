"""The bytes of the page pool: shared memory, private to the user, mapped once, and addresses behind it for aliases of its pages."""

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
from headrace.memory.address_space import LinuxSpace

AHEAD_BYTES = 24 * 2**20  # what is kept touched beyond the pages in use: a few large steps of prompts
_TOUCH_BYTES = 4 * 2**20  # about 4 ms of zeroing: short enough to stop at, long enough to cost nothing
_MADV_REMOVE = 9  # free what lies there in the file itself, too
_MADV_POPULATE_WRITE = 23  # Linux 5.14: fault pages in without changing what they hold


class Arena:
    """``pages`` pages of ``page_bytes`` bytes in one memory file that only this user can open.

    ``bytes`` is the numpy view, uint8 [pages, page_bytes]. A page may lie in several ``strips`` of equal size, all pages' first
    strips one after the other, then all second ones: then ``bytes`` is [pages, strips, bytes of a strip]. Behind the pages lie
    ``aliases`` rows of addresses that hold nothing until :meth:`alias` shows pages there, read-only; ``rows`` is both
    together, in the same shape. There are none (``aliases`` is 0) where a strip is not whole pages of the system.

    Fresh memory is zero. The system zeroes each OS page when it is first used, at about 1 GB/s; :meth:`touch` and
    :meth:`touch_ahead` do that before a step has to wait for it. Huge pages are asked for and used where the system allows them
    for shared memory. Raises :class:`HeadraceError` ``invalid_setting`` when the memory can't be mapped.
    """

    def __init__(self, pages: int, page_bytes: int, strips: int = 1, aliases: int = 0) -> None:
        if pages < 1 or page_bytes < 1:
            raise HeadraceError("invalid_value", f"can't map {pages} pages of {page_bytes} bytes", param="pages")
        if strips < 1 or page_bytes % strips:
            raise HeadraceError("internal_error", f"{page_bytes} bytes are not {strips} equal strips")
        self.pages = pages
        self.page_bytes = page_bytes
        self.strips = strips
        self.aliases = aliases if can_alias(page_bytes, strips) else 0
        self._descriptor = os.memfd_create("headrace-pages", os.MFD_CLOEXEC)
        try:
            os.fchmod(self._descriptor, 0o600)
            os.ftruncate(self._descriptor, self.size)
            self.rows: npt.NDArray[np.uint8] = self._map()
        except (OSError, OverflowError, HeadraceError) as error:
            os.close(self._descriptor)
            message = f"can't map a page pool of {self.size / 2**20:,.0f} MiB: {error}"
            raise HeadraceError("invalid_setting", message, param="pages") from None
        self.bytes: npt.NDArray[np.uint8] = self.rows[:pages]
        self.touched_bytes = 0
        self.most_ahead = pages  # no page behind these is touched ahead
        self._populate = _madvise()
        self.huge_pages = self._ask_for_huge_pages()
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

    def alias(self, row: int, page: int, count: int) -> None:
        """Show ``count`` adjacent pages in as many rows from ``row`` on, read-only, instead of what was shown there.

        Raises OSError when the system has no room for more mappings.
        """
        self._check_aliases(row, count)
        size = self._strip_bytes
        for strip in range(self.strips):
            source = (strip * self.pages + page) * size
            self._space.map(strip * self._stride + row * size, source, count * size, writable=False)

    def unalias(self, row: int, count: int) -> None:
        """Show nothing in these rows any more. Raises OSError as :meth:`alias` does."""
        self._check_aliases(row, count)
        for strip in range(self.strips):
            self._space.unmap(strip * self._stride + row * self._strip_bytes, count * self._strip_bytes)

    def touch(self, pages: int) -> None:
        """Fault the first ``pages`` pages in, on this thread; contents stay as they are, so steps may run meanwhile.

        Does what is left of it: memory that was touched before is not visited again. Returns early when closed.
        """
        with self._touching:
            end, at_once = min(pages, self.pages), max(1, _TOUCH_BYTES // self.page_bytes)
            while self.touched_bytes < end * self.page_bytes and not self._closed:
                page = self.touched_bytes // self.page_bytes
                count = min(at_once, end - page)
                for strip in range(self.strips):
                    self._fault_in(strip * self._stride + page * self._strip_bytes, count * self._strip_bytes)
                self.touched_bytes = (page + count) * self.page_bytes

    def touch_ahead(self, pages: int) -> None:
        """Say that the first ``pages`` pages are in use: a thread keeps the next 24 MiB touched. O(1), never waits.

        Memory nobody needs is never taken from the system, and no step waits for what it needs.
        """
        if pages * self.page_bytes + AHEAD_BYTES // 2 <= self._asked * self.page_bytes or self._asked >= self.most_ahead:
            return
        self._asked = min(self.most_ahead, pages + max(1, AHEAD_BYTES // self.page_bytes))
        if self._toucher is None:
            self._toucher = threading.Thread(target=self._keep_ahead, name="headrace-touch", daemon=True)
            self._toucher.start()
        self._wanted.set()

    def give_up(self, page: int, count: int) -> bool:
        """Give the memory of adjacent pages back to the system; they read as zeros and take memory again when they are written.

        Only whole pages of the system go. One that can't do it leaves all as it is, which costs memory and nothing else: False.
        """
        done = True
        with self._touching:
            for strip in range(self.strips):
                first = strip * self._stride + page * self._strip_bytes
                start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
                length = (first + count * self._strip_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
                if length > 0:
                    done = not self._populate(self._space.memory.ctypes.data + start, length, _MADV_REMOVE) and done
        return done

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
        self.rows = self.bytes = np.empty((0, self.page_bytes), dtype=np.uint8)
        del self._space  # unmapped with its last view
        os.close(self._descriptor)

    @property
    def _strip_bytes(self) -> int:
        return self.page_bytes // self.strips

    def _map(self) -> npt.NDArray[np.uint8]:
        """The pool at the beginning of each strip's addresses, the aliases behind it."""
        size = self._strip_bytes
        self._stride = (self.pages + self.aliases) * size
        whole = -(-self.strips * self._stride // mmap.PAGESIZE) * mmap.PAGESIZE
        self._space = LinuxSpace(self._descriptor, whole)
        if self.aliases:
            for strip in range(self.strips):
                self._space.map(strip * self._stride, strip * self.pages * size, self.pages * size, writable=True)
        else:
            self._space.map(0, 0, whole, writable=True)
        shape = (self.strips, self.pages + self.aliases, size)
        rows = self._space.memory[: self.strips * self._stride].reshape(shape).transpose(1, 0, 2)
        return rows if self.strips > 1 else rows[:, 0]

    def _check_aliases(self, row: int, count: int) -> None:
        if not (self.pages <= row and 0 < count <= self.pages + self.aliases - row):
            raise ValueError(f"rows {row} … +{count} are not among the {self.aliases} behind page {self.pages}")

    def _fault_in(self, start: int, length: int) -> None:
        code = self._populate(self._space.memory.ctypes.data + start, length, _MADV_POPULATE_WRITE)
        if code == errno.EINVAL:  # an older kernel: reading faults shared memory in as well
            self._space.memory[start : start + length : mmap.PAGESIZE].max()
        elif code:
            message = f"the system has no memory left for the page pool: {os.strerror(code)}"
            raise HeadraceError("invalid_setting", message, param="pages")

    def _ask_for_huge_pages(self) -> bool:
        if shared_huge_pages() not in ("always", "within_size", "advise"):
            return False
        length = self.pages * self._strip_bytes
        return not any(
            self._populate(self._space.memory.ctypes.data + strip * self._stride, length, mmap.MADV_HUGEPAGE)
            for strip in range(self.strips)
        )


def can_alias(page_bytes: int, strips: int) -> bool:
    """Whether pages so cut can be shown in a second place: strips must be whole pages of the system."""
    return page_bytes % strips == 0 and page_bytes // strips % mmap.PAGESIZE == 0


def shared_huge_pages() -> str:
    """When the system gives shared memory huge pages: ``always``, ``within_size``, ``advise``, ``never`` …, or ``unknown``."""
    try:
        with open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", encoding="ascii") as file:
            text = file.read()
    except OSError:
        return "unknown"
    return text[text.find("[") + 1 : text.find("]")]


def _madvise() -> Callable[[int, int, int], int]:
    """madvise through ctypes, because that releases the interpreter lock; returns an errno, 0 when done."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def advise(address: int, length: int, advice: int) -> int:
        start = address // mmap.PAGESIZE * mmap.PAGESIZE
        failed = madvise(start, address + length - start, advice)
        return ctypes.get_errno() if failed else 0

    return advise
