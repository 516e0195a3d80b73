"""What weights and rows in few bits buy: one stream, where their bytes count, and blocks of rows, where the products do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from headrace.evaluation.experiment import Claim, Conditions, Series, interleave
from headrace.evaluation.machine import read_bandwidth
from headrace.evaluation.rounded_weights import Encode, Reencoded, as_4bit, as_8bit, as_bf16
from headrace.evaluation.statistics import median_ratio
from headrace.kernels import _native
from headrace.kernels.interface import PAGE_TOKENS, StepBatch
from headrace.kernels.native_chain import NativeChain
from headrace.kernels.packing import pack
from headrace.models.catalog import OpenModel
from headrace.models.config import MlpSpec
from headrace.models.weights import dequantise

_FORMS: dict[str, tuple[str, Encode]] = {"w4a8": ("W4A8", as_4bit), "w8a8": ("W8A8", as_8bit), "bf16": ("bf16", as_bf16)}
_CONTEXT, _STEPS = 64, 24
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_QUICK_ROWS = (1, 16, 64)
_STREAMED_BYTES = 100 << 20  # more than the caches of this class of machines give to one program


def one_stream(conditions: Conditions, model: OpenModel) -> list[Claim]:
    """Tokens/s of one stream on the same chain with weights in each form, in turns."""
    threads = conditions.threads or 2
    runs: list[Callable[[], float]] = []
    for number, (_, encode) in enumerate(_FORMS.values()):
        conditions.report("weights in each form", number, len(_FORMS))
        chain = NativeChain(model.config, Reencoded(model.weights, encode), threads)
        runs.append(_stream(chain, 8 if conditions.quick else _STEPS))
    for run in runs:
        run()
    rates = interleave(runs, 3 if conditions.quick else 9, partial(conditions.report, "one stream"))
    note = ", ".join(f"{name} {statistics.median(one):.0f}" for (name, _), one in zip(_FORMS.values(), rates, strict=True))
    note += " tokens/s; embedding and head in 8 bits with both"
    return [
        Claim(f"stream_w4a8_{other}", f"one stream on the chain alone, W4A8 / {_FORMS[other][0]}", ">=", asked,
              median_ratio(rates[0], rates[place]), "x", note)
        for other, asked, place in (("w8a8", 1.5, 1), ("bf16", 2.8, 2))
    ]  # fmt: skip


def _stream(chain: NativeChain, steps: int) -> Callable[[], float]:
    """A run of greedy steps of one sequence behind a short context: its tokens/s."""
    pages = np.arange(-(-(_CONTEXT + steps) // PAGE_TOKENS), dtype=np.int32)
    pool = np.zeros((len(pages), chain.page_layout.page_bytes), np.uint8)
    tokens = np.arange(100, 100 + _CONTEXT, dtype=np.int32)
    chain.forward(_slice(tokens, 0, pages), pool)

    def run() -> float:
        token = chain.config.vocab // 2
        began = time.perf_counter()
        for position in range(_CONTEXT, _CONTEXT + steps):
            chain.forward(_slice(np.asarray([token], np.int32), position, pages), pool)
            token = int(chain.greedy(0, 1)[0])
        return steps / (time.perf_counter() - began)

    return run


def _slice(tokens: np.ndarray, start: int, pages: np.ndarray) -> StepBatch:
    count = len(tokens)
    return StepBatch(
        token_ids=tokens, positions=np.arange(start, start + count, dtype=np.int32), slice_starts=np.asarray([0, count], np.int32),
        page_starts=np.asarray([0, len(pages)], np.int32), page_ids=pages, output_rows=np.asarray([count - 1], np.int32),
    )  # fmt: skip


def blocks_of_rows(conditions: Conditions, model: OpenModel) -> tuple[list[Claim], list[Series]]:
    """Rate of products with each form over the number of rows, matrices streamed from memory, in turns."""
    pool = _native.ThreadPool(conditions.threads or 2)
    encoders = {"w4a8": as_4bit, "w8a8": as_8bit}
    matrices = {name: _streamed(model, encode, pool) for name, encode in encoders.items()}
    layers = len(matrices["w4a8"])
    work = {name: sum(matrix.inputs * matrix.columns for matrix in made) / 1e9 for name, made in matrices.items()}
    rng = np.random.default_rng(conditions.seed)
    sizes, rounds = (_QUICK_ROWS, 3) if conditions.quick else (_ROWS, 7)
    times: dict[int, list[list[float]]] = {}
    for number, rows in enumerate(sizes):
        conditions.report("blocks of rows", number, len(sizes))
        x = rng.standard_normal((rows, model.config.hidden), dtype=np.float32)
        runs = [partial(_native.time_products, matrices[name], x, pool, 1) for name in encoders]
        # the lists hold as many bytes as each other, not as many products: compare times of a billion products
        taken = interleave(runs, rounds)
        times[rows] = [[seconds / work[name] for seconds in one] for name, one in zip(encoders, taken, strict=True)]
    series = [
        Series(name, "rows", "billion products a second", tuple(map(float, sizes)),
               tuple(rows / min(times[rows][place]) for rows in sizes))
        for place, name in enumerate(("W4A8", "W8A8"))
    ]  # fmt: skip
    many = [rows for rows in sizes if rows >= 64]
    worst = min(many, key=lambda rows: median_ratio(times[rows][1], times[rows][0]))
    ratios = ", ".join(f"{rows}: {median_ratio(times[rows][1], times[rows][0]):.2f}" for rows in sizes)
    note = f"{layers} matrices of gate and up, rows: ratio = {ratios}"
    claims = [
        Claim("rows_64", f"rate of products with 64 rows and more, W4A8 / W8A8, the worst ({worst} rows)", ">=", 0.9,
              median_ratio(times[worst][1], times[worst][0]), "x", note),
        Claim("rows_16", "rate of products with 16 rows, matrices streamed, W4A8 / W8A8", ">=", 1.2,
              median_ratio(times[16][1], times[16][0]), "x"),
        _bound(conditions, matrices["w4a8"], min(times[1][0]) * work["w4a8"]),
    ]  # fmt: skip
    return claims, series


def _bound(conditions: Conditions, matrices: list[_native.PackedMatrix], seconds: float) -> Claim:
    """One row: no kernel with freer sums can be faster than reading the same bytes."""
    size = sum(matrix.bytes for matrix in matrices)
    bandwidth = read_bandwidth(conditions.threads or 2)
    rate = size / seconds / 1e9
    note = f"{rate:.1f} of {bandwidth:.1f} GB/s; no kernel of any order reads the same codes faster than that"
    what = "one row in the fixed order / the time that memory needs for the codes"
    return Claim("order", what, ">=", 0.95, rate / bandwidth, "x", note)


def _streamed(model: OpenModel, encode: Encode, pool: _native.ThreadPool) -> list[_native.PackedMatrix]:
    """Gate and up of each layer as the chain has them, again and again until caches can't hold them."""
    layers = sum(isinstance(block, MlpSpec) for block in model.config.blocks)
    made: list[_native.PackedMatrix] = []
    while sum(matrix.bytes for matrix in made) < _STREAMED_BYTES:
        prefix = f"layer.{len(made) % layers}.mlp."
        both = [encode(name, dequantise(model.weights.tensor(prefix + name))) for name in ("gate", "up")]
        made.append(pack(both, pool, interleave=True))
    return made
