"""Safetensors files and sharded folders, read without belief: no code, no pickle, every offset checked.

::

    header_bytes (u64) | JSON {name: {dtype, shape, data_offsets}} | tensor bytes
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.models.files import map_file, read_limited, refuse
from headrace.models.weights import RawBytes

MAX_HEADER_BYTES = 1 << 22
MAX_INDEX_BYTES = 1 << 22
MAX_TENSORS = 65_536
MAX_SHARDS = 1024
MAX_DIMENSIONS = 4

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_KINDS = {"F32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1}
_ENTRY_FIELDS = {"dtype", "shape", "data_offsets"}
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}\.safetensors")


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """One tensor of a file: ``kind`` is F32, F16, BF16, I16, I8 or U8, ``data`` a view into the mapping."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: RawBytes


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Map and check one file; ``model_file`` when its header does not fit its bytes or it has an unsupported kind."""
    try:
        return parse_safetensors(map_file(path))
    except HeadraceError as error:
        raise HeadraceError(error.code, f"{path.name}: {error.message}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The free texts of a file's header (``__metadata__``); ``model_file`` when they are no texts."""
    header = parse_json(header_of(map_file(path)), "header")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, Mapping) or not all(isinstance(value, str) for value in metadata.values()):
        raise refuse(f"{path.name}: __metadata__ is no object of texts")
    return dict(metadata)


def open_folder(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder: its single file, or the shards that its index names (inside the folder only)."""
    if not (folder / INDEX_NAME).exists():
        return open_safetensors(folder / SINGLE_NAME)
    index = parse_json(read_limited(folder / INDEX_NAME, MAX_INDEX_BYTES), INDEX_NAME)
    owners = index.get("weight_map")
    if not isinstance(owners, Mapping) or len(owners) > MAX_TENSORS:
        raise refuse(f"{INDEX_NAME} has no weight_map of at most {MAX_TENSORS} tensors")
    shards = sorted({_shard_name(owner) for owner in owners.values()})
    if len(shards) > MAX_SHARDS:
        raise refuse(f"{INDEX_NAME} names {len(shards)} shards, the limit is {MAX_SHARDS}")
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, tensor in open_safetensors(folder / shard).items():
            if owners.get(name) != shard or name in tensors:
                raise refuse(f"tensor {name[:128]!r} of {shard!r} does not stand there in {INDEX_NAME}")
            tensors[name] = tensor
    missing = sorted(set(owners) - set(tensors))
    if missing:
        raise refuse(f"tensor {missing[0][:128]!r} stands in {INDEX_NAME} and in no shard")
    return tensors


def parse_safetensors(buffer: RawBytes) -> dict[str, StoredTensor]:
    """As :func:`open_safetensors`, of bytes in memory."""
    stored = header_of(buffer)
    header, body = parse_json(stored, "header"), buffer[8 + len(stored) :]
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise refuse(f"{len(header)} tensors, the limit is {MAX_TENSORS}")
    tensors: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        tensor, span = _read_entry(name, entry, body)
        tensors[name] = tensor
        spans.append((*span, name))
    free = 0
    for start, end, name in sorted(spans):
        if start < free:
            raise refuse(f"tensor {name!r} overlaps another")
        free = end
    return tensors


def parse_json(data: bytes, what: str) -> dict[str, object]:
    """A JSON object with unique keys; ``model_file`` for anything else."""
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except HeadraceError:
        raise
    except (ValueError, RecursionError) as error:
        raise refuse(f"{what} is not valid JSON: {str(error)[:80]}") from error
    if not isinstance(value, dict):
        raise refuse(f"{what} is not a JSON object")
    return value


def header_of(buffer: RawBytes) -> bytes:
    """The header's JSON, not looked into. Raises ``model_file`` when it is longer than a header or the file may be."""
    if buffer.size < 8:
        raise refuse(f"{buffer.size} bytes are too few for a safetensors header")
    size = int.from_bytes(buffer[:8].tobytes(), "little")
    if size > min(MAX_HEADER_BYTES, buffer.size - 8):
        raise refuse(f"header of {size} bytes is over the limit of {MAX_HEADER_BYTES} or the file's {buffer.size} bytes")
    return buffer[8 : 8 + size].tobytes()


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise refuse(f"key {twice[:128]!r} is declared twice")
    return made


def _no_constant(name: str) -> float:
    raise refuse(f"{name} is no JSON number")


def _shard_name(owner: object) -> str:
    # A plain file name: no separators, no leading dot, so that it can't lead out of the folder.
    if not isinstance(owner, str) or not _SHARD_NAME.fullmatch(owner):
        raise refuse(f"{INDEX_NAME} names a shard {str(owner)[:64]!r} that is no plain file name")
    return owner


def _read_entry(name: str, entry: object, body: RawBytes) -> tuple[StoredTensor, tuple[int, int]]:
    shown = name[:128]
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_FIELDS:
        raise refuse(f"tensor {shown!r} must have dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _KINDS:
        raise refuse(f"tensor {shown!r} is of kind {str(kind)[:32]!r}; known are {', '.join(_KINDS)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        raise refuse(f"tensor {shown!r} has a shape or offsets that are no lists of sizes")
    start, end = offsets
    size = _KINDS[kind]
    for length in shape:
        size *= length
    if not start <= end <= body.size or end - start != size or size == 0:
        raise refuse(f"tensor {shown!r} of {size} bytes has offsets {start} to {end} in a body of {body.size}")
    return StoredTensor(name, kind, tuple(shape), body[start:end]), (start, end)


def _are_sizes(value: object) -> bool:
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110 - in every entry of every file; a generator takes three times as long
        if type(item) is not int or not 0 <= item < 1 << 63:
            return False
    return True
