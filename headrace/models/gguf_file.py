"""GGUF files, read without belief: every declared number is checked against the bytes that are really there.

::

    magic version tensor_count kv_count | key type value … | name dims kind offset … | padding | tensor bytes
    └────────── header ───────────────┘ └── metadata ────┘ └── tensor table ───────┘           └─ data start
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.models.files import map_file, refuse
from headrace.models.weights import RawBytes

VERSIONS = (2, 3)
MAX_METADATA_KEYS = 4096
MAX_KEY_BYTES = 256
MAX_STRING_BYTES = 1 << 20
MAX_ARRAY_LENGTH = 1 << 20
MAX_ARRAY_STRINGS_BYTES = 1 << 25
MAX_TENSORS = 65_536
MAX_TENSOR_NAME_BYTES = 256
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32

_MAGIC = b"GGUF"
_BOOL, _STRING, _ARRAY = 7, 8, 9
# The numeric value types of the format by their number: (struct code, numpy type).
_NUMBERS: dict[int, tuple[str, str]] = {
    0: ("<B", "<u1"),
    1: ("<b", "<i1"),
    2: ("<H", "<u2"),
    3: ("<h", "<i2"),
    4: ("<I", "<u4"),
    5: ("<i", "<i4"),
    6: ("<f", "<f4"),
    7: ("<B", "<u1"),
    10: ("<Q", "<u8"),
    11: ("<q", "<i8"),
    12: ("<d", "<f8"),
}
# A weight encoding: its name, values in a block, bytes of a block.
_Kind: TypeAlias = tuple[str, int, int]
# Weight encodings of the format by number: (name, values in a block, bytes of a block).
KINDS: Mapping[int, _Kind] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class LazyStrings(Sequence[str]):
    """A string array that stays in the mapped file until it is first read (a vocabulary takes longer than the rest).

    Raises ``model_file`` at the first access when a string is not UTF-8.
    """

    __slots__ = ("_buffer", "_count", "_items", "_key", "_start")

    def __init__(self, buffer: memoryview, start: int, count: int, key: str) -> None:
        self._buffer, self._start, self._count, self._key = buffer, start, count, key
        self._items: list[str] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._load()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def _load(self) -> list[str]:
        if self._items is None:
            items, position, buffer, unpack = [], self._start, self._buffer, _U64.unpack_from
            try:
                for _ in range(self._count):
                    end = position + 8 + unpack(buffer, position)[0]
                    items.append(str(buffer[position + 8 : end], "utf-8"))
                    position = end
            except UnicodeDecodeError as error:
                raise refuse(f"metadata {self._key!r} has a string that is not UTF-8") from error
            self._items = items
        return self._items


MetadataValue: TypeAlias = int | float | bool | str | LazyStrings | npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table. ``shape`` is row-major (outputs first), ``start`` counts from the file's begin."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class GgufFile:
    """A GGUF file whose header, metadata and tensor table have been checked. Nothing is copied out of the mapping.

    ``metadata_span``: first byte of the metadata, and the byte behind it.
    """

    version: int
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, GgufTensor]
    buffer: RawBytes
    metadata_span: tuple[int, int]

    def data(self, tensor: GgufTensor) -> RawBytes:
        """The tensor's encoded bytes, a read-only view."""
        return self.buffer[tensor.start : tensor.start + tensor.size]

    def without_tensors(self) -> bytes:
        """A whole GGUF file of the same metadata and no tensors: all that a tokenizer needs."""
        start, end = self.metadata_span
        return _MAGIC + struct.pack("<IQQ", self.version, 0, len(self.metadata)) + self.buffer[start:end].tobytes()


class _Cursor:
    """A read position that cannot leave the file."""

    __slots__ = ("buffer", "end", "position")

    def __init__(self, buffer: memoryview) -> None:
        self.buffer, self.position, self.end = buffer, 0, len(buffer)

    def take(self, size: int, what: str) -> int:
        """Move over ``size`` bytes and return where they begin."""
        start = self.position
        if size > self.end - start:
            raise refuse(f"{what} needs {size} bytes at offset {start}, the file ends at {self.end}")
        self.position = start + size
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.buffer, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.buffer, self.take(8, what))[0])

    def count(self, what: str, limit: int, smallest: int) -> int:
        """A number of things that follow, each at least ``smallest`` bytes long."""
        number = self.u64(what)
        if number > limit:
            raise refuse(f"{what} is {number}, the limit is {limit}")
        if number * smallest > self.end - self.position:
            raise refuse(f"{what} is {number}, more than fits in the {self.end - self.position} bytes that follow")
        return number

    def text(self, what: str, limit: int) -> str:
        size = self.u64(f"length of {what}")
        if size > limit:
            raise refuse(f"{what} has {size} bytes, the limit is {limit}")
        start = self.take(size, what)
        try:
            return str(self.buffer[start : start + size], "utf-8")
        except UnicodeDecodeError as error:
            raise refuse(f"{what} is not UTF-8") from error


def open_gguf(path: Path) -> GgufFile:
    """Map and check a GGUF file (version 2 or 3, little-endian).

    Raises ``model_file`` when any declared number does not fit the file or a limit of this module.
    """
    try:
        return parse_gguf(map_file(path))
    except HeadraceError as error:
        raise HeadraceError(error.code, f"{path.name}: {error.message}") from error


def parse_gguf(buffer: RawBytes) -> GgufFile:
    """As :func:`open_gguf`, of bytes in memory."""
    view = buffer.data
    cursor = _Cursor(view)
    version = _check_header(cursor)
    tensor_count = cursor.count("tensor count", MAX_TENSORS, 24)
    key_count = cursor.count("metadata count", MAX_METADATA_KEYS, 13)
    metadata: dict[str, MetadataValue] = {}
    metadata_start = cursor.position
    for index in range(key_count):
        key = cursor.text(f"metadata key {index}", MAX_KEY_BYTES)
        if not key or key in metadata:
            raise refuse(f"metadata key {key!r} is {'declared twice' if key else 'empty'}")
        metadata[key] = _read_value(cursor, key)
    span = (metadata_start, cursor.position)
    tensors = _read_table(cursor, tensor_count, _alignment(metadata))
    return GgufFile(version, MappingProxyType(metadata), MappingProxyType(tensors), buffer, span)


def _check_header(cursor: _Cursor) -> int:
    start = cursor.take(4, "magic")
    magic = bytes(cursor.buffer[start : start + 4])
    if magic != _MAGIC:
        raise refuse(f"not a GGUF file: it begins with {magic!r} instead of {_MAGIC!r}")
    version = cursor.u32("version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        why = "it is big-endian" if swapped in VERSIONS else f"version {version}"
        raise refuse(f"GGUF file can't be read: {why}; known are little-endian versions {VERSIONS[0]} and {VERSIONS[1]}")
    return version


def _read_value(cursor: _Cursor, key: str) -> MetadataValue:
    what = f"metadata {key!r}"
    kind = cursor.u32(f"type of {what}")
    if kind == _STRING:
        return cursor.text(what, MAX_STRING_BYTES)
    if kind == _ARRAY:
        return _read_array(cursor, key)
    if kind not in _NUMBERS:
        raise refuse(f"{what} has unknown value type {kind}")
    code = _NUMBERS[kind][0]
    number = struct.unpack_from(code, cursor.buffer, cursor.take(struct.calcsize(code), what))[0]
    if kind != _BOOL:
        return float(number) if isinstance(number, float) else int(number)
    if number > 1:
        raise refuse(f"{what} is a boolean of value {number}")
    return bool(number)


def _read_array(cursor: _Cursor, key: str) -> MetadataValue:
    what = f"metadata {key!r}"
    kind = cursor.u32(f"element type of {what}")
    if kind == _ARRAY:
        raise refuse(f"{what} is an array of arrays, which no known model needs")
    if kind == _STRING:
        count = cursor.count(f"length of {what}", MAX_ARRAY_LENGTH, 8)
        start = cursor.position
        cursor.position = _skip_strings(cursor, count, what)
        return LazyStrings(cursor.buffer, start, count, key)
    if kind not in _NUMBERS:
        raise refuse(f"{what} has unknown element type {kind}")
    dtype = np.dtype(_NUMBERS[kind][1])
    count = cursor.count(f"length of {what}", MAX_ARRAY_LENGTH, dtype.itemsize)
    numbers = np.frombuffer(cursor.buffer, dtype, count, cursor.take(count * dtype.itemsize, what))
    if kind != _BOOL:
        return numbers
    if count and numbers.max() > 1:
        raise refuse(f"{what} has a boolean of value {numbers.max()}")
    return numbers.astype(np.bool_)


def _skip_strings(cursor: _Cursor, count: int, what: str) -> int:
    """Where the array ends. Every length must be followed on the way, so the loop does nothing else."""
    position, unpack, buffer = cursor.position, _U64.unpack_from, cursor.buffer
    last = min(cursor.end, position + MAX_ARRAY_STRINGS_BYTES) - 8
    for index in range(count):
        if position > last:
            raise refuse(f"{what} leaves the file or its limit of {MAX_ARRAY_STRINGS_BYTES} bytes at string {index} of {count}")
        position += 8 + unpack(buffer, position)[0]
    if position > last + 8:
        raise refuse(f"{what} leaves the file or its limit of {MAX_ARRAY_STRINGS_BYTES} bytes in its last string")
    return position


def _alignment(metadata: Mapping[str, MetadataValue]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or isinstance(alignment, bool):
        raise refuse("metadata 'general.alignment' is not an integer")
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise refuse(f"alignment {alignment} is not a power of two from 8 to {MAX_ALIGNMENT}")
    return alignment


def _read_table(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    """Read the tensor table; offsets become absolute and are checked against the file and each other."""
    rows = [_read_tensor(cursor, index) for index in range(count)]
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    free = data_start
    for name, kind, shape, offset, size in sorted(rows, key=lambda row: row[3]):
        start = data_start + offset
        if offset % alignment:
            raise refuse(f"tensor {name!r} begins at {offset}, not a multiple of the alignment {alignment}")
        if start < free:
            raise refuse(f"tensor {name!r} overlaps the one before it")
        free = start + size
        if free > cursor.end:
            raise refuse(f"tensor {name!r} ends at byte {free}, the file at {cursor.end}")
        if name in tensors:
            raise refuse(f"tensor {name!r} is declared twice")
        tensors[name] = GgufTensor(name, kind, shape, start, size)
    return tensors


def _read_tensor(cursor: _Cursor, index: int) -> tuple[str, str, tuple[int, ...], int, int]:
    name = cursor.text(f"name of tensor {index}", MAX_TENSOR_NAME_BYTES)
    dimensions = cursor.u32(f"dimension count of tensor {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise refuse(f"tensor {name!r} has {dimensions} dimensions, the limit is {MAX_DIMENSIONS}")
    # The file lists the fastest-moving dimension first.
    shape = tuple(reversed([cursor.u64(f"dimension of tensor {name!r}") for _ in range(dimensions)]))
    number = cursor.u32(f"kind of tensor {name!r}")
    offset = cursor.u64(f"offset of tensor {name!r}")
    if 0 in shape:
        raise refuse(f"tensor {name!r} has an empty dimension: {shape}")
    if number not in KINDS:
        raise refuse(f"tensor {name!r} has unknown kind {number}")
    kind, block, block_bytes = KINDS[number]
    if shape[-1] % block:
        raise refuse(f"tensor {name!r} has rows of {shape[-1]}, not a multiple of the {block} of {kind}")
    elements = 1
    for length in shape:
        elements *= length  # Python integers have no width to overflow
    return name, kind, shape, offset, elements // block * block_bytes
