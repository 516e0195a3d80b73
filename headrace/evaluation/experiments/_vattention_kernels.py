"""Attention alone, on pages that stand in a row and on scattered ones: native and torch, and with a prefix shared or copied."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np

from headrace.engine.build import BuildOptions, make_chain, make_pool
from headrace.evaluation.experiment import Claim, Conditions, interleave
from headrace.evaluation.trials import Bench
from headrace.kernels import _native
from headrace.kernels.interface import PAGE_TOKENS, Bytes, Int32, StepBatch
from headrace.memory.arena import Arena
from headrace.memory.views import AHEAD_PAGES, ViewPlan, Views
from headrace.models.config import AttentionSpec

_CONTEXT = 2048
_CHILDREN, _PREFIX, _TAIL = 16, 64, 2  # sequences, and pages of each


class _Decode:
    """One new token in each sequence of ``tables`` (pages of the pool), in every layer of a page."""

    def __init__(self, spec: AttentionSpec, pool: Bytes, tables: list[list[int]]) -> None:
        layer = spec.kv_heads * 2 * PAGE_TOKENS * spec.head_dim * 2
        layers = pool.shape[1] // layer
        self._shapes = [
            _native.AttentionShape.of(spec.heads, spec.kv_heads, spec.head_dim, 0, index * layer, "bf16") for index in range(layers)
        ]
        self._threads = _native.ThreadPool(1)
        own = len(tables[0])
        positions, slices = [own * PAGE_TOKENS - 1] * len(tables), range(len(tables) + 1)
        places = (positions, slices, [own * index for index in slices], [page for table in tables for page in table])
        self._places = tuple(np.array(one, np.int32) for one in places)
        self._q = np.random.default_rng(1).normal(size=(len(tables), spec.heads * spec.head_dim)).astype(np.float32)
        self._out, self._pool = np.empty_like(self._q), pool

    def run(self, first_rows: Int32 | None = None) -> float:
        """Seconds of the attention of a step."""
        positions, slices, starts, pages = self._places
        began = time.perf_counter()
        for shape in self._shapes:
            _native.attention(
                self._threads, shape, positions, slices, starts, pages, self._pool, self._q, self._out, first_rows
            )  # fmt: skip
        return time.perf_counter() - began


def native_claims(bench: Bench, conditions: Conditions) -> list[Claim]:
    """By tables and in a row, in cache and out of it; a prefix that is one memory and one that was copied."""
    arena, spec = bench.built.arena, bench.built.chain.config.attention_blocks[0]
    own = _CONTEXT // PAGE_TOKENS
    used = _PREFIX + _CHILDREN * (_PREFIX + _TAIL)
    rng = np.random.default_rng(conditions.seed)
    page = rng.normal(size=arena.page_bytes // 4).astype(np.float32)
    for index in range(used):
        arena.bytes[index] = (
            (np.roll(page, index).view(np.uint32) >> 16).astype(np.uint16).repeat(2).view(np.uint8)[: arena.page_bytes]
        )
    rounds = 45 if conditions.quick else 150
    decode = _Decode(spec, arena.rows, [list(range(own))])
    rows = np.array([0], np.int32)
    variants: list[Callable[[], float]] = [decode.run, partial(decode.run, rows)]
    table, straight = interleave(variants, rounds, partial(conditions.report, "native attention"))
    claims = [
        Claim("native", "native decode attention at 2,048 tokens, by table / in a row", "<=", 1.15, min(table) / min(straight), "x",
              "so tables stay the default: a table costs one look-up for 4 KiB"),
    ]  # fmt: skip
    tails = [list(range(_PREFIX + _TAIL * child, _PREFIX + _TAIL * (child + 1))) for child in range(_CHILDREN)]
    first = _PREFIX + _TAIL * _CHILDREN
    copies = [list(range(first + _PREFIX * child, first + _PREFIX * (child + 1))) for child in range(_CHILDREN)]
    views = bench.views()
    shared = [list(range(_PREFIX)) + tail for tail in tails]
    private = [copy + tail for copy, tail in zip(copies, tails, strict=True)]
    firsts = [
        np.array(views.place(range(2 * _CHILDREN), list(enumerate(tables, start))), np.int32)
        for start, tables in ((0, shared), (_CHILDREN, private))
    ]
    runs = [partial(_Decode(spec, arena.rows, tables).run, rows) for tables, rows in zip((shared, private), firsts, strict=True)]
    one, many = interleave(runs, rounds // 3, partial(conditions.report, "shared prefix"))
    views.close()
    what = f"attention of {_CHILDREN} children of a 1,024-token prefix, copied / shown in {_CHILDREN} views"
    return [*claims, Claim("shared_time", what, ">=", 1.5, min(many) / min(one), "x", f"{1e3 * min(one):.1f} ms shared")]


def torch_claims(bench: Bench, conditions: Conditions) -> list[Claim]:
    """The torch chain at 2,048 tokens: in place against gathered; and what mapping costs its steps."""
    if find_spec("torch") is None:
        missing = "needs the extra `torch`"
        return [Claim("torch", "torch attention at 2,048 tokens, gathered / in place", ">=", 1.5, float("nan"), "x", missing)]
    import torch

    before = torch.get_num_threads()
    try:
        return _torch(bench, conditions)
    finally:
        torch.set_num_threads(before)


def _torch(bench: Bench, conditions: Conditions) -> list[Claim]:
    import torch

    from headrace.engine.viewing import Viewing
    from headrace.kernels.torch_blocks import TorchAttention
    from headrace.kernels.torch_chain import TorchChain
    from headrace.models.catalog import find_model, open_model

    chain = make_chain(open_model(find_model(conditions.model)), "torch", 1, "fp32")
    assert isinstance(chain, TorchChain)
    own = _CONTEXT // PAGE_TOKENS
    arena, viewing = make_pool(chain, 3 * own, _CONTEXT * 2, BuildOptions())
    assert isinstance(viewing, Viewing)
    pages = _scattered(arena, own, conditions.seed)
    rows = np.array(viewing.views.place((1,), [(1, pages)]), np.int32)

    def batch(first: Int32 | None) -> StepBatch:
        starts, rest = np.array([0, 1], np.int32), np.array([0, own], np.int32)
        token, position, row = (np.array([value], np.int32) for value in (5, _CONTEXT - 1, 0))
        return StepBatch(token, position, starts, rest, np.array(pages, np.int32), row, first_rows=first)

    def step(first: Int32 | None) -> float:
        began = time.perf_counter()
        chain.forward(batch(first), arena.rows)
        return time.perf_counter() - began

    blocks = [block for block in chain._blocks if isinstance(block, TorchAttention)]
    layers, query = chain._layers(arena.rows), torch.randn(1, blocks[0].spec.heads, blocks[0].spec.head_dim)

    def attend(first: Int32 | None) -> float:
        places = chain._places(batch(first))
        began = time.perf_counter()
        with torch.inference_mode():
            for block, layer in zip(blocks, layers, strict=True):
                block._attend(query, places, places.slices[0], layer)
        return time.perf_counter() - began

    logits = []
    for first in (rows, None):
        step(first)
        logits.append(np.array(chain.logits(0, 1)))
    found: list[list[list[float]]] = []
    for run in (attend, step):
        variants: list[Callable[[], float]] = [partial(run, rows), partial(run, None)]
        found.append(interleave(variants, 9 if conditions.quick else 30, partial(conditions.report, "torch")))
    ratios = [statistics.median(gathered) / statistics.median(placed) for placed, gathered in found]
    note = f"{arena.strips} strips a page; {viewing.views.ledger.maps:,} mappings"
    claims = [
        Claim("torch", "torch attention at 2,048 tokens, gathered / in place", ">=", 1.5, ratios[0], "x", note),
        Claim("torch_step", "a whole decode step of it, gathered / in place", ">=", 1.05, ratios[1], "x",
              f"{1e3 * min(found[1][0]):.1f} ms in place"),
        Claim("torch_exact", "logits in place, as gathered", "==", 100, 100 * float(np.mean(logits[0] == logits[1])), "% bits"),
        *_mapping(viewing.views.plan.range_pages, arena.strips, min(found[1][0])),
    ]  # fmt: skip
    viewing.close()
    arena.close()
    return claims


def _scattered(arena: Arena, count: int, seed: int) -> list[int]:
    """So many pages in runs of 8, in any order, of a pool full of small numbers."""
    rng = np.random.default_rng(seed)
    strip = arena.page_bytes // arena.strips // 4
    for page in range(arena.pages):
        arena.bytes[page].view(np.float32)[...] = 0.1 * rng.standard_normal((arena.strips, strip), np.float32)
    order = random.Random(seed).sample(range(arena.pages // 8), count // 8)
    return [8 * run + index for run in order for index in range(8)]


def _mapping(range_pages: int, strips: int, step_seconds: float) -> list[Claim]:
    """Four growing sequences on a pool of that many strips: what decode steps wait for, with and without looking ahead."""
    plan, waits = ViewPlan(8, range_pages), []
    with Arena(400, strips * 4096, strips, plan.rows) as arena:
        for ahead in (AHEAD_PAGES, 0):
            views = Views(arena, plan, ahead=ahead)
            tables = {owner: [0, 50 + 80 * owner] for owner in range(4)}
            views.place(tables, list(tables.items()))
            before = views.inline_seconds
            for token in range(48 * PAGE_TOKENS):
                views.look_ahead(tables)
                if token % PAGE_TOKENS == 0:
                    for table in tables.values():
                        table.append(table[-1] + 1)
                time.sleep(0.0005)  # a step computes; here it only lets the thread run
                views.place(tables, list(tables.items()))
            waits.append((views.inline_seconds - before) / (48 * PAGE_TOKENS))
            views.close()
    return [
        Claim("mapping", "time that decode steps wait for mappings, looking ahead (steps that sleep)", "<=", 1.0,
              100 * waits[0] / step_seconds, "% of the torch step",
              f"{1e6 * waits[0]:.0f} µs a step of 4 sequences, pages in {strips} strips"),
        Claim("mapping_inline", "the same when the step that needs a page maps it", ">=", 5.0, waits[1] / waits[0], "x",
              f"{1e6 * waits[1]:.0f} µs a step"),
    ]  # fmt: skip
