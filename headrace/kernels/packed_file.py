"""The file that keeps packed matrices between starts: written whole or not at all, mapped read-only, believed in nothing.

::

    header (64 bytes) | panels of matrix 0 | panels of matrix 1 | … | directory (JSON)
                      └ each begins at a multiple of 4096 ┘

The header says where the directory is, the directory where each matrix begins and what its bytes sum to. How a matrix is
laid out stands nowhere: it follows from the model, so that a wrong file can be slow to find out but never misread.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from headrace.kernels._native import ThreadPool, checksum

ALIGNMENT = 4096
MAX_DIRECTORY_BYTES = 1 << 24
PART_PREFIX, PART_SUFFIX = ".", ".part"

_MAGIC = b"headpack"
_VERSION = 1
_HEADER = struct.Struct(
    "<8sQQQQQ"
)  # magic, version, bytes of the file, directory's place, its bytes, its sum; the header's sum follows
_HEADER_BYTES = 64

Bytes = npt.NDArray[np.uint8]


class PackedFileError(ValueError):
    """The file is damaged, of another model, or not one of ours; the message says what is wrong with it."""


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    name: str
    start: int
    size: int
    total: int


class _Directory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    entries: list[_Entry]


def write(path: Path, key: str, matrices: Iterable[tuple[str, Bytes]], pool: ThreadPool) -> None:
    """Write (name, panels) pairs, each taken and written before the next is asked for.

    The file gets its name when it is complete and on disk: a reader never meets half of it, whatever ends this process.
    Raises OSError when the folder can't be written.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=PART_PREFIX, suffix=PART_SUFFIX, delete=False) as file:
        part = Path(file.name)
        try:
            file.write(bytes(_HEADER_BYTES))
            entries = []
            for name, panels in matrices:
                file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
                entries.append(_Entry(name, file.tell(), panels.size, checksum(panels, pool)))
                file.write(panels.data)
            directory = msgspec.json.encode(_Directory(key, entries))
            place = file.tell()
            file.write(directory)
            total = checksum(np.frombuffer(directory, np.uint8), pool)
            file.seek(0)
            file.write(_header(place + len(directory), place, len(directory), total, pool))
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _header(size: int, place: int, length: int, total: int, pool: ThreadPool) -> bytes:
    fields = _HEADER.pack(_MAGIC, _VERSION, size, place, length, total)
    return fields + checksum(np.frombuffer(fields, np.uint8), pool).to_bytes(8, "little")


def read(path: Path, key: str, names: Sequence[str], pool: ThreadPool) -> list[Bytes]:
    """Panels of the matrices of these names, which must be the file's own, all of them and in its order.

    Views of one read-only mapping that lives as long as any of them; their sums have been checked, which also brings them
    into memory. Raises PackedFileError for anything but a whole file with this ``key``, FileNotFoundError when there is none.
    """
    buffer = _map(path)
    directory = _directory(buffer, pool)
    if directory.key != key:
        raise PackedFileError("it was made of another model or by another version")
    if [entry.name for entry in directory.entries] != list(names):
        raise PackedFileError("it has not the matrices of this model")
    free, found = _HEADER_BYTES, []
    for entry in directory.entries:
        if entry.start % ALIGNMENT or entry.start < free or not 0 < entry.size <= buffer.size - entry.start:
            raise PackedFileError(f"matrix {entry.name} has no place in the file")
        free = entry.start + entry.size
        panels = buffer[entry.start : free]
        if checksum(panels, pool) != entry.total:
            raise PackedFileError(f"matrix {entry.name} is damaged")
        found.append(panels)
    return found


def _directory(buffer: Bytes, pool: ThreadPool) -> _Directory:
    header = buffer[: _HEADER.size].tobytes()
    magic, version, size, place, length, total = _HEADER.unpack(header)
    if magic != _MAGIC or version != _VERSION:
        raise PackedFileError("it is no file of packed weights of this version")
    if _header(size, place, length, total, pool) != buffer[: _HEADER.size + 8].tobytes() or size != buffer.size:
        raise PackedFileError("its header is damaged or it has lost its end")
    if length > MAX_DIRECTORY_BYTES or place > size or length > size - place:
        raise PackedFileError("its directory has no place in the file")
    directory = buffer[place : place + length]
    if checksum(directory, pool) != total:
        raise PackedFileError("its directory is damaged")
    try:
        return msgspec.json.decode(directory.tobytes(), type=_Directory)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackedFileError("its directory can't be read") from error


def _map(path: Path) -> Bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError from error
    except OSError as error:
        raise PackedFileError(f"it can't be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise PackedFileError("it is no regular file that only its user can write")
        if status.st_size < _HEADER_BYTES:
            raise PackedFileError("it is too short")
        return np.frombuffer(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(descriptor)
