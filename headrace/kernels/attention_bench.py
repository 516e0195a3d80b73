"""Measures attention of a decode step alone, for each format of keys and values: time, bytes that rest in pages, bytes a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.errors import HeadraceError
from headrace.kernels import _native
from headrace.kernels.interface import KV_BITS, PAGE_TOKENS, Bytes, Int32, KvFormat
from headrace.models.config import AttentionSpec


@dataclass(frozen=True, slots=True)
class DecodeCase:
    """One new token in each of ``batch`` sequences of ``context`` tokens, through ``layers`` layers.

    Pages of several layers are more than a cache keeps, so that attention reads memory as in a real step.
    """

    context: int = 8192
    batch: int = 8
    layers: int = 6
    threads: int = 2
    trials: int = 7


@dataclass(frozen=True, slots=True)
class AttentionTime:
    """One format measured: ``seconds`` of attention a step (median, all layers), ``resident_bytes`` of the pages in the pool.

    ``gigabytes``: 10⁹ bytes of pages read a second.
    """

    kv: KvFormat
    isa: str
    seconds: float
    fastest: float
    resident_bytes: int
    gigabytes: float


def decode_attention(
    spec: AttentionSpec, case: DecodeCase | None = None, formats: Sequence[KvFormat] = ("bf16", "kv8", "kv4")
) -> dict[KvFormat, AttentionTime]:
    """Measure each format on the same keys and values; trials of the formats take turns, so that noise meets all alike.

    Raises ``invalid_setting`` for an unknown format or a case without work.
    """
    case = case or DecodeCase()
    if unknown := [kv for kv in formats if kv not in KV_BITS]:
        raise HeadraceError("invalid_setting", f"no format of keys and values is called {unknown[0]!r}", param="formats")
    if min(case.context, case.batch, case.layers, case.trials) < 1:
        raise HeadraceError("invalid_setting", "context, batch, layers and trials must be at least 1", param="case")
    steps = {kv: _Step(spec, case, kv) for kv in formats}
    times: dict[KvFormat, list[float]] = {kv: [] for kv in formats}
    for trial in range(case.trials + 1):
        for kv, step in steps.items():
            seconds = step.run()
            if trial > 0:  # the first one touches memory
                times[kv].append(seconds)
    return {kv: _row(kv, steps[kv].pool.nbytes, times[kv]) for kv in formats}


def _row(kv: KvFormat, resident: int, times: list[float]) -> AttentionTime:
    seconds = statistics.median(times)
    return AttentionTime(kv, _native.isa(), seconds, min(times), resident, resident / seconds / 1e9)


class _Step:
    """Pages full of noise and a batch of single rows over them."""

    def __init__(self, spec: AttentionSpec, case: DecodeCase, kv: KvFormat) -> None:
        layer_bytes = _shape(spec, 0, kv).layer_bytes
        self._shapes = [_shape(spec, layer * layer_bytes, kv) for layer in range(case.layers)]
        self._threads = _native.ThreadPool(case.threads)
        own = -(-case.context // PAGE_TOKENS)
        self.pool: Bytes = np.zeros((case.batch * own, case.layers * layer_bytes), np.uint8)
        self._fill(spec, case, own)
        rng = np.random.default_rng(1)
        self._q = (rng.normal(size=(case.batch, spec.heads * spec.head_dim)) * spec.head_dim**-0.5).astype(np.float32)
        self._out = np.empty_like(self._q)
        self._positions = _ints(np.full(case.batch, case.context - 1))
        self._slices = _ints(np.arange(case.batch + 1))
        self._starts = _ints(np.arange(case.batch + 1) * own)
        self._pages = _ints(np.arange(case.batch * own))

    def run(self) -> float:
        """Seconds of one step's attention."""
        began = time.perf_counter()
        for shape in self._shapes:
            _native.attention(
                self._threads, shape, self._positions, self._slices, self._starts, self._pages, self.pool, self._q, self._out
            )
        return time.perf_counter() - began

    def _fill(self, spec: AttentionSpec, case: DecodeCase, own: int) -> None:
        """One layer of one sequence is written as a step would; the others are copies of its bytes."""
        rng = np.random.default_rng(0)
        noise = rng.normal(size=(2, case.context, spec.kv_heads, spec.head_dim)).astype(np.float32)
        for position in range(case.context):
            key, value = noise[:, position]
            _native.store_kv(self._shapes[0], key, value, position % PAGE_TOKENS, self.pool[position // PAGE_TOKENS])
        layer = self._shapes[0].layer_bytes
        self.pool.reshape(case.batch, own, case.layers, layer)[:] = self.pool[:own, None, :layer].copy()


def _shape(spec: AttentionSpec, offset: int, kv: KvFormat) -> _native.AttentionShape:
    return _native.AttentionShape.of(spec.heads, spec.kv_heads, spec.head_dim, spec.window or 0, offset, kv)


def _ints(values: np.typing.ArrayLike) -> Int32:
    return np.ascontiguousarray(values, dtype=np.int32)
