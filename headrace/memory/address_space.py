"""A range of addresses in which pieces of a memory file are shown and replaced: the seam to any virtual memory system.

The contract, and what fulfils it here and on a device whose driver has virtual memory calls (the use of both for keys and values
is that of "vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention"):

=============  ==========================================  ==============================================
step           this module (Linux)                         CUDA driver
=============  ==========================================  ==============================================
reserve        ``mmap(PROT_NONE, MAP_NORESERVE)``          ``cuMemAddressReserve``
create         a page of the pool's memory file            ``cuMemCreate`` (handles, made once, recycled)
map + access   ``mmap(MAP_FIXED | MAP_SHARED)``            ``cuMemMap``, ``cuMemSetAccess``
unmap          ``mmap(PROT_NONE, MAP_FIXED)``              ``cuMemUnmap``
release        ``munmap``, when nothing looks at it        ``cuMemAddressFree``, ``cuMemRelease``
=============  ==========================================  ==============================================

``tests/memory/test_address_space.py`` holds whoever implements it to the contract.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError

_NO_ACCESS = 0
_NORESERVE = 0x4000
_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value
_Map = Callable[[int | None, int, int, int, int, int], int]


class AddressSpace(Protocol):
    """Addresses 0 … ``size`` of which every piece shows a part of the memory file, or nothing.

    Offsets and lengths are multiples of ``granule``. The same part may be shown in many places, and what is written in one
    is read in the others. Calls may come from any thread, while others read elsewhere in the space.
    """

    size: int
    granule: int

    def map(self, at: int, source: int, length: int, *, writable: bool) -> None:
        """Show bytes ``source`` … of the file from ``at`` on, instead of what was there; forbidden writing faults.

        Raises OSError when the system has no room for one more mapping: then nothing is shown there.
        """

    def unmap(self, at: int, length: int) -> None:
        """Show nothing there any more: a look at it faults. Raises OSError as :meth:`map` does."""


class LinuxSpace:
    """An :class:`AddressSpace` over the memory file ``descriptor``. ``memory`` is the whole of it, uint8 [size].

    The range is given back when the last array over it has gone. Raises HeadraceError ``invalid_setting`` when the process may not
    have so many addresses.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self.granule = mmap.PAGESIZE
        self._descriptor = descriptor
        self._mmap, munmap = _calls()
        try:
            self._address = self._call(None, size, _NO_ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        except (OSError, OverflowError, ctypes.ArgumentError) as error:
            message = f"can't reserve {size / 2**20:,.0f} MiB of addresses: {error}"
            raise HeadraceError("invalid_setting", message, param="pages") from None
        owner = (ctypes.c_ubyte * size).from_address(self._address)
        weakref.finalize(owner, munmap, self._address, size).atexit = False  # at exit others may still compute
        self.memory: npt.NDArray[np.uint8] = np.frombuffer(memoryview(owner), dtype=np.uint8)

    def map(self, at: int, source: int, length: int, *, writable: bool) -> None:
        """See :class:`AddressSpace`."""
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._call(self._address + at, length, access, mmap.MAP_SHARED | _FIXED, self._descriptor, source)

    def unmap(self, at: int, length: int) -> None:
        """See :class:`AddressSpace`."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE | _FIXED
        self._call(self._address + at, length, _NO_ACCESS, flags)

    def _call(self, address: int | None, length: int, access: int, flags: int, descriptor: int = -1, source: int = 0) -> int:
        found = self._mmap(address, length, access, flags, descriptor, source)
        if found == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return found


def map_limit() -> int:
    """Mappings that the system grants one process."""
    try:
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 65_530  # the default of Linux


def maps_in_use() -> int:
    """Mappings that this process has now."""
    try:
        with open("/proc/self/maps", "rb") as file:
            return file.read().count(b"\n")
    except OSError:
        return 0


def _calls() -> tuple[_Map, Callable[[int, int], int]]:
    """mmap and munmap through ctypes: Python's own can't place a mapping, and ctypes releases the interpreter lock."""
    library = ctypes.CDLL(None, use_errno=True)
    place, remove = library.mmap, library.munmap
    place.restype = ctypes.c_void_p
    place.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong)
    remove.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return place, remove
