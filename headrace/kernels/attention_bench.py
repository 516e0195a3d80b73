"""Measures attention alone, of decode rows or of prompts, for each format of keys and values: time, products and bytes a second."""

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
class AttentionCase:
    """The last ``rows`` tokens of each of ``batch`` sequences of ``context`` tokens (1: decoding), through ``layers`` layers.

    Pages of several layers are more than a cache keeps, so that attention reads memory as in a real step.
    """

    context: int = 8192
    batch: int = 8
    rows: int = 1
    layers: int = 6
    threads: int = 2
    trials: int = 7


@dataclass(frozen=True, slots=True)
class AttentionTime:
    """One format measured: ``seconds`` of attention a step (median, all layers), ``resident_bytes`` of the pages in the pool.

    ``gigabytes``: 10⁹ bytes of pages a second if each is read once; ``gigamacs``: 10⁹ products of keys and values that rows see.
    """

    kv: KvFormat
    isa: str
    seconds: float
    fastest: float
    resident_bytes: int
    gigabytes: float
    gigamacs: float


def measure_attention(
    spec: AttentionSpec, case: AttentionCase | None = None, formats: Sequence[KvFormat] = ("bf16", "kv8", "kv4")
) -> dict[KvFormat, AttentionTime]:
    """Measure each format on the same keys and values; trials of the formats take turns, so that noise meets all alike.

    Raises ``invalid_setting`` for an unknown format or a case without work.
    """
    case = case or AttentionCase()
    if unknown := [kv for kv in formats if kv not in KV_BITS]:
        raise HeadraceError("invalid_setting", f"no format of keys and values is called {unknown[0]!r}", param="formats")
    if min(case.rows, case.batch, case.layers, case.trials) < 1 or case.context < case.rows:
        message = "rows, batch, layers and trials must be at least 1, and context at least rows"
        raise HeadraceError("invalid_setting", message, param="case")
    steps = {kv: _Step(spec, case, kv) for kv in formats}
    times: dict[KvFormat, list[float]] = {kv: [] for kv in formats}
    for trial in range(case.trials + 1):
        for kv, step in steps.items():
            seconds = step.run()
            if trial > 0:  # the first one touches memory
                times[kv].append(seconds)
    return {kv: _row(kv, steps[kv], times[kv]) for kv in formats}


def _row(kv: KvFormat, step: _Step, times: list[float]) -> AttentionTime:
    seconds, resident = statistics.median(times), step.pool.nbytes
    return AttentionTime(kv, _native.isa(), seconds, min(times), resident, resident / seconds / 1e9, step.products / seconds / 1e9)


class _Step:
    """Pages full of noise and a batch of rows over them."""

    def __init__(self, spec: AttentionSpec, case: AttentionCase, kv: KvFormat) -> None:
        layer_bytes = _shape(spec, 0, kv).layer_bytes
        self._shapes = [_shape(spec, layer * layer_bytes, kv) for layer in range(case.layers)]
        self._threads = _native.ThreadPool(case.threads)
        own = -(-case.context // PAGE_TOKENS)
        self.pool: Bytes = np.zeros((case.batch * own, case.layers * layer_bytes), np.uint8)
        self._fill(spec, case, own)
        rng = np.random.default_rng(1)
        self._q = (rng.normal(size=(case.batch * case.rows, spec.heads * spec.head_dim)) * spec.head_dim**-0.5).astype(np.float32)
        self._out = np.empty_like(self._q)
        self._positions = _ints(np.tile(np.arange(case.context - case.rows, case.context), case.batch))
        self._slices = _ints(np.arange(case.batch + 1) * case.rows)
        self._starts = _ints(np.arange(case.batch + 1) * own)
        self._pages = _ints(np.arange(case.batch * own))
        seen = self._positions.astype(np.int64) + 1
        if spec.window:
            seen = np.minimum(seen, spec.window)
        self.products = 2 * case.layers * spec.heads * spec.head_dim * int(seen.sum())

    def run(self) -> float:
        """Seconds of one step's attention."""
        began = time.perf_counter()
        for shape in self._shapes:
            _native.attention(
                self._threads, shape, self._positions, self._slices, self._starts, self._pages, self.pool, self._q, self._out
            )
        return time.perf_counter() - began

    def _fill(self, spec: AttentionSpec, case: AttentionCase, own: int) -> None:
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
