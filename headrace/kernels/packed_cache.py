"""Packed weights kept between starts and shared between processes: one mapped file a model, made at the first start.

Several engines of one model read the same pages of memory, and a start costs one look over the file instead of packing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError
from headrace.kernels._native import PackedMatrix, ThreadPool, checksum, source_bytes
from headrace.kernels.formats import source_kinds
from headrace.kernels.packed_file import PART_PREFIX, PART_SUFFIX, Bytes, read, write
from headrace.kernels.packing import Matrices, Stack, borrow, pack, pack_all, recipe, stacks
from headrace.models.config import ModelConfig
from headrace.models.files import FileIdentity, identify
from headrace.models.packages import cache_dir
from headrace.models.weights import RawTensor, WeightSource

logger = logging.getLogger("headrace.kernels.packed_cache")

SUFFIX = ".packed"
MOST_BYTES = 8 << 30
DISK_SHARE = 0.1  # of the file system that the folder lies on
SPARE_BYTES = 1 << 30  # left free on it
ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class CacheState:
    """What ``headrace doctor`` shows of the folder: files in it, their bytes, and the bytes at which old ones go."""

    folder: Path
    files: int
    bytes: int
    limit: int


class PackedCache:
    """The folder of packed files. ``matrices`` never fails for the folder's sake: at worst it packs in memory and warns."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_dir() / "packed"

    def matrices(self, config: ModelConfig, weights: WeightSource, files: Sequence[FileIdentity], pool: ThreadPool) -> Matrices:
        """A model's packed matrices by name: mapped from the file kept of it, which is made when there is none.

        ``files``: the files behind ``weights``, as they were before they were opened; none: nothing is kept. Raises
        ``model_file`` when the weights can't be packed.
        """
        wanted = list(stacks(config))
        key = _key(files, wanted, weights, pool)
        path = self.folder / f"{Path(files[0].path).stem[:64] if files else 'model'}-{key[:24]}{SUFFIX}"
        made = self._opened(path, key, wanted, weights, pool) if files else None
        if made is None and files and self._written(path, key, (config, weights, files), pool):
            made = self._opened(path, key, wanted, weights, pool)
        if made is None:
            made = {stack.name: matrix for stack, matrix in pack_all(config, weights, pool)}
        return made

    def state(self) -> CacheState:
        """How full the folder is."""
        sizes = [status.st_size for _, status in self._files()]
        return CacheState(self.folder, len(sizes), sum(sizes), self._limit())

    def _opened(self, path: Path, key: str, wanted: list[Stack], weights: WeightSource, pool: ThreadPool) -> Matrices | None:
        try:
            panels = read(path, key, [stack.name for stack in wanted], pool)
            made = {stack.name: _borrowed(stack, weights, found) for stack, found in zip(wanted, panels, strict=True)}
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s is not usable and is made again: %s", path.name, error)
            return None
        try:
            os.utime(path)  # the order of use, by which old files go
        except OSError as error:
            logger.debug("%s keeps its time of use: %s", path.name, error.strerror)
        return made

    def _written(
        self, path: Path, key: str, model: tuple[ModelConfig, WeightSource, Sequence[FileIdentity]], pool: ThreadPool
    ) -> bool:
        config, weights, files = model
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(path, 2 * weights.size_bytes)
            write(path, key, _unchanged(files, ((s.name, m.panels) for s, m in pack_all(config, weights, pool))), pool)
        except OSError as error:
            logger.warning("packed weights can't be kept in %s and are packed at every start: %s", self.folder, error)
            return False
        return True

    def _make_room(self, kept: Path, needed: int) -> None:
        """Remove the files used longest ago, and what killed writers left, until ``needed`` bytes more fit under the limit."""
        for part in self.folder.glob(f"{PART_PREFIX}*{PART_SUFFIX}"):
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                part.unlink(missing_ok=True)
        others = sorted(((status.st_mtime_ns, status.st_size, path) for path, status in self._files() if path != kept))
        held, limit = sum(size for _, size, _ in others), self._limit()
        for _, size, path in others:
            if held + needed <= limit:
                break
            path.unlink(missing_ok=True)
            held -= size
        if shutil.disk_usage(self.folder).free < needed + SPARE_BYTES:
            raise OSError("the disk is nearly full")

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(f"*{SUFFIX}") if self.folder.is_dir() else ():
            try:
                yield path, path.stat()
            except FileNotFoundError:  # another process has removed it
                continue

    def _limit(self) -> int:
        place = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        return min(MOST_BYTES, int(DISK_SHARE * shutil.disk_usage(place).total))


def _unchanged(files: Sequence[FileIdentity], matrices: Iterator[tuple[str, Bytes]]) -> Iterator[tuple[str, Bytes]]:
    """Pass on matrices; raises OSError at their end when the files they came from are no longer what they were."""
    yield from matrices
    try:
        now = [identify(Path(file.path)) for file in files]
    except HeadraceError as error:
        raise OSError(error.message) from error
    if now != list(files):
        raise OSError("the model's files have changed meanwhile")


def _borrowed(stack: Stack, weights: WeightSource, panels: Bytes) -> PackedMatrix:
    return borrow([weights.outline(name) for name in stack.tensors], panels, interleave=stack.interleave)


def _key(files: Sequence[FileIdentity], wanted: Sequence[Stack], weights: WeightSource, pool: ThreadPool) -> str:
    """Names everything that decides the packed bytes: the files, the packer, and what is made of which tensors."""
    recipes = [(s.name, recipe([weights.outline(name) for name in s.tensors], interleave=s.interleave)) for s in wanted]
    facts = [[dataclasses.astuple(file) for file in files], packer_sum(pool), recipes]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def packer_sum(pool: ThreadPool) -> int:
    """Tells one packer from another by what it makes of small matrices of every kind: no version number to forget."""
    rows, inputs, total = 17, 512, 0
    for name in source_kinds():
        size = source_bytes(name, rows, inputs)
        # Bytes below 0x3d: no half, bfloat or float made of them is infinite or not a number.
        data = (np.arange(size, dtype=np.uint32) * np.uint32(37) % np.uint32(61)).astype(np.uint8)
        tensor = RawTensor(name, (rows, inputs), data)
        for tensors, interleave in (([tensor], False), ([tensor, tensor], True)):
            total = (total * 31 + checksum(pack(tensors, pool, interleave=interleave).panels, pool)) % 2**64
    return total
