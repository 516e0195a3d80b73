"""The memory of jobs: pages of the one pool, held by the job, so that training never takes more than what is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.kernels._native import PackedMatrix, ThreadPool
from headrace.kernels.interface import Bytes
from headrace.kernels.packed_cache import PackedCache
from headrace.memory.page_pool import PagePool
from headrace.models.catalog import OpenModel


class JobPages:
    """Pages of one job, cut into arrays. ``pages`` are given back by whoever took them, after the arrays are gone.

    An array lies in adjacent pages. Where what is left of a run is too short, or the pool lies in strips, it lies elsewhere and
    as many bytes of the pages stay unused: the sum is the same.
    """

    def __init__(self, pages: list[int], pool: Bytes) -> None:
        self.pages = pages
        self._pool = pool
        self._runs: list[list[int]] = []  # first byte, bytes left
        self._page_bytes = int(pool[:1].size)
        if pool.ndim == 2 and pool.flags.c_contiguous:
            for page in sorted(pages):
                if self._runs and self._runs[-1][0] + self._runs[-1][1] == page * self._page_bytes:
                    self._runs[-1][1] += self._page_bytes
                else:
                    self._runs.append([page * self._page_bytes, self._page_bytes])

    def make(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array with anything in it."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        padded = -(-size // 64) * 64
        run = min((one for one in self._runs if one[1] >= padded), key=lambda one: one[1], default=None)
        if run is None or size == 0:
            return np.empty(shape, kind)
        first = run[0]
        run[0], run[1] = run[0] + padded, run[1] - padded
        page, offset = divmod(first, self._page_bytes)
        rows = self._pool[page : (first + size - 1) // self._page_bytes + 1].reshape(-1)
        return np.asarray(rows[offset : offset + size].view(kind).reshape(shape))


def take_pages(pool: PagePool, count: int, leave: int) -> list[int] | None:
    """``count`` pages if ``leave`` pages stay free of any job, else ``None``."""
    if pool.available - count < 0 or pool.lasting - count < leave:
        return None
    return pool.allocate(count)


def packed_again(model: OpenModel) -> Mapping[str, PackedMatrix]:
    """A model's matrices as its chain has them: in the same memory where they are kept as a file."""
    return PackedCache().matrices(model.config, model.weights, model.files, ThreadPool(1))
