"""Files from outside: mapped read-only, refused in one way."""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError
from headrace.models.weights import RawBytes

MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Tells one state of a file from every other without reading it: its place, size in bytes, times in ns and number."""

    path: str
    size: int
    modified: int
    changed: int
    inode: int


def identify(path: Path) -> FileIdentity:
    """The file's identity now; ``model_file`` when it is gone."""
    try:
        status = path.stat()
    except OSError as error:
        raise refuse(f"{path.name!r} can't be looked at: {error.strerror}") from error
    return FileIdentity(str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def refuse(message: str) -> HeadraceError:
    """The error for a model file that is damaged, lies or is of an unknown kind (to be raised by the caller)."""
    # Names come from the file, so a message could be as long as it likes.
    return HeadraceError("model_file", message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 3]}...")


def map_file(path: Path) -> RawBytes:
    """The file's bytes, mapped read-only; ``model_file`` when it is missing, empty or no regular file.

    The mapping lives as long as any view of it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise refuse(f"{path.name!r} can't be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refuse(f"{path.name!r} is not a regular file")
        if status.st_size == 0:
            raise refuse(f"{path.name!r} is empty")
        return np.frombuffer(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(descriptor)


def release(view: RawBytes) -> None:
    """Take a mapped file's pages out of this process's memory; reading them again brings them back. Else does nothing."""
    owner: object = view
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def read_limited(path: Path, limit: int) -> bytes:
    """A small file whole; ``model_file`` when it has more than ``limit`` bytes."""
    data = map_file(path)
    if data.size > limit:
        raise refuse(f"{path.name!r} has {data.size} bytes, the limit is {limit}")
    return data.tobytes()
