"""What fewer bits buy: attention over coded keys and values, and the pages that they take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from headrace.evaluation.exactness import UNLIMITED, budgeted, greedy_requests
from headrace.evaluation.experiment import Claim, Conditions, interleave
from headrace.evaluation.statistics import median_ratio
from headrace.evaluation.trials import Bench
from headrace.kernels import _native
from headrace.kernels.interface import PAGE_TOKENS, Bytes, KvFormat, StepBatch, kv_head_bytes
from headrace.kernels.native_chain import NativeChain
from headrace.models.catalog import OpenModel

_BATCH, _CONTEXT, _QUICK_CONTEXT = 8, 8192, 2048
_LAYERS = 6  # of a page: together far more than a cache, and 6 times the work of one call
_FORMATS: tuple[KvFormat, ...] = ("bf16", "kv8", "kv4")
_ASKED = {"kv8": 1.7, "bf16": 3.0}
_RESIDENT_PROMPT, _RESIDENT_OUTPUT = 200, 24


def attention(conditions: Conditions, model: OpenModel) -> list[Claim]:
    """One new token of 8 sequences with a long context: time of attention over pages in each form, in turns."""
    context = _QUICK_CONTEXT if conditions.quick else _CONTEXT
    threads = _native.ThreadPool(conditions.threads or 2)
    runs = [_attention(model, kv, context, threads) for kv in _FORMATS]
    for run in runs:
        run()
    rounds = 3 if conditions.quick else 11
    times = interleave(runs, rounds, partial(conditions.report, "attention"))
    by_format = dict(zip(_FORMATS, times, strict=True))
    note = ", ".join(f"{kv} {1e3 * statistics.median(seconds):.2f} ms a layer" for kv, seconds in by_format.items())
    return [
        Claim(
            f"attention_{other}", f"time of attention, {other} / kv4: {_BATCH} sequences at {context:,} tokens", ">=", asked,
            median_ratio(by_format[other], by_format["kv4"]), "x", note,
        )
        for other, asked in ((kv, _ASKED[kv]) for kv in _FORMATS if kv in _ASKED)
    ]  # fmt: skip


def _attention(model: OpenModel, kv: KvFormat, context: int, threads: _native.ThreadPool) -> Callable[[], float]:
    """A pool of real pages in that form, and what measures one layer on it in seconds."""
    spec = model.config.attention_blocks[0]
    layer_bytes = spec.kv_heads * kv_head_bytes(kv, spec.head_dim)
    pages = _BATCH * context // PAGE_TOKENS
    pool = np.tile(_real_page(model, kv)[: _LAYERS * layer_bytes], (pages, 1))
    shapes = [
        _native.AttentionShape.of(spec.heads, spec.kv_heads, spec.head_dim, 0, layer * layer_bytes, kv) for layer in range(_LAYERS)
    ]
    rng = np.random.default_rng(0)
    page_ids = rng.permutation(pages).astype(np.int32)
    q = rng.standard_normal((_BATCH, spec.heads * spec.head_dim), dtype=np.float32)
    places = (
        np.full(_BATCH, context - 1, np.int32),
        np.arange(_BATCH + 1, dtype=np.int32),
        np.arange(_BATCH + 1, dtype=np.int32) * np.int32(context // PAGE_TOKENS),
        page_ids,
    )
    out = np.empty_like(q)

    def measure() -> float:
        began = time.perf_counter()
        for shape in shapes:
            _native.attention(threads, shape, *places, pool, q, out)
        return (time.perf_counter() - began) / _LAYERS

    return measure


def _real_page(model: OpenModel, kv: KvFormat) -> Bytes:
    """A page that the model itself has written."""
    chain = NativeChain(model.config, model.weights, 2, kv=kv)
    pool = np.zeros((1, chain.page_layout.page_bytes), np.uint8)
    count = PAGE_TOKENS
    batch = StepBatch(
        token_ids=np.arange(100, 100 + count, dtype=np.int32), positions=np.arange(count, dtype=np.int32),
        slice_starts=np.asarray([0, count], np.int32), page_starts=np.asarray([0, 1], np.int32),
        page_ids=np.zeros(1, np.int32), output_rows=np.zeros(0, np.int32),
    )  # fmt: skip
    chain.forward(batch, pool)
    return np.asarray(pool[0])


def resident(conditions: Conditions) -> list[Claim]:
    """Bytes of the pages that the same 8 requests hold, counted at the pool."""
    held: dict[str, int] = {}
    for kv in ("bf16", "kv4"):
        conditions.report("pages held", len(held), 2)
        with Bench(conditions, kv) as bench:
            submits = greedy_requests(bench, [_RESIDENT_PROMPT] * _BATCH, [_RESIDENT_OUTPUT], conditions.seed)
            engine, most = budgeted(bench, UNLIMITED), 0
            for submit in submits:
                engine.submit(submit)
            while engine.live:
                engine.step()
                most = max(most, engine.scheduler.pool.held)
            held[kv] = most * bench.built.arena.bytes.shape[1]
    note = f"{held['bf16'] / 2**20:.1f} MiB and {held['kv4'] / 2**20:.1f} MiB for {_BATCH} sequences"
    ratio = held["bf16"] / held["kv4"]
    return [Claim("resident", "bytes of pages that the same requests hold, bf16 / kv4", ">=", 3.5, ratio, "x", note)]
