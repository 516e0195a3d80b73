"""What adapters add to a step: one row each of so many streams, over one, a few or as many different adapters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from headrace.kernels import _native
from headrace.kernels.adapter_layout import lay_out
from headrace.kernels.adapter_pages import place_adapter
from headrace.kernels.interface import Bytes, Int32, PlacedAdapter, StepAdapters, StepBatch
from headrace.kernels.native_chain import NativeChain
from headrace.models.adapter import MODULES, Adapter, LowRank, module_sides, round_bf16
from headrace.models.catalog import OpenModel
from headrace.models.config import ModelConfig

STREAMS = 32
DISTINCT = (1, 4, 32)
RANK = 16
_TRIALS = 15


@dataclass(frozen=True, slots=True)
class AdapterSpeed:
    """A step of ``streams`` rows over ``distinct`` adapters of ``rank`` in all linear modules; the fastest of some turns.

    ``base_seconds``: the same step without adapters. ``reading_seconds``: reading the adapters' ``megabytes``, in the same turns.
    """

    streams: int
    distinct: int
    rank: int
    megabytes: float
    seconds: float
    base_seconds: float
    reading_seconds: float

    @property
    def slowdown(self) -> float:
        """The step's time over the base's."""
        return self.seconds / self.base_seconds

    @property
    def of_reading(self) -> float:
        """The time added, in units of only reading the adapters once."""
        return (self.seconds - self.base_seconds) / self.reading_seconds


def random_adapter(config: ModelConfig, rank: int, seed: int, modules: Sequence[str] = MODULES) -> Adapter:
    """Random numbers of a trained adapter's size in ``modules`` of all layers; none is zero."""
    generator = np.random.default_rng(seed)
    layers = []
    for sides in module_sides(config):
        made = {}
        for name in modules:
            inputs, outputs = sides[name]
            a = generator.standard_normal((rank, inputs), np.float32) / math.sqrt(inputs)
            b = generator.standard_normal((outputs, rank), np.float32) * (0.05 / math.sqrt(rank))
            made[name] = LowRank(round_bf16(a), round_bf16(b), 1.0)
        layers.append(made)
    return Adapter(tuple(layers), "random")


def measure_adapters(model: OpenModel, threads: int, report: Callable[[str, int, int], None]) -> list[AdapterSpeed]:
    """Steps with 0, 1, a few and many adapters, in turns with reading the adapters' pages alone."""
    chain = NativeChain(model.config, model.weights, threads)
    pool, placed = _fill(chain, report)
    base = _one_row_each(STREAMS)
    steps = [base] + [_with_adapters(base, placed[:distinct]) for distinct in DISTINCT]
    # As for products: with one thread its own time counts, so that a neighbour on the machine looks like none.
    clock = time.thread_time if threads == 1 else time.perf_counter
    best, reading = [math.inf] * len(steps), math.inf
    for trial in range(_TRIALS):
        report("measuring", trial, _TRIALS)
        for index, step in enumerate(steps):
            began = clock()
            chain.forward(step, pool)
            # The first turn faults in scratch memory.
            best[index] = min(best[index], clock() - began) if trial else math.inf
        reading = min(reading, _native.time_page_reads(pool[STREAMS:], chain.pool))
    each = len(placed[0].pages) * chain.page_layout.page_bytes
    whole = each * len(placed)
    return [
        AdapterSpeed(STREAMS, distinct, RANK, distinct * each / 1e6, seconds, best[0], reading * distinct * each / whole)
        for distinct, seconds in zip(DISTINCT, best[1:], strict=True)
    ]


def _fill(chain: NativeChain, report: Callable[[str, int, int], None]) -> tuple[Bytes, list[PlacedAdapter]]:
    """A pool with a page for each stream and different adapters behind them."""
    config, page_bytes = chain.config, chain.page_layout.page_bytes
    pages = lay_out(config, [dict.fromkeys(MODULES, RANK)] * config.layers, page_bytes).pages
    pool = np.zeros((STREAMS + max(DISTINCT) * pages, page_bytes), np.uint8)
    placed = []
    for index in range(max(DISTINCT)):
        report("making adapters", index, max(DISTINCT))
        own = np.arange(STREAMS + index * pages, STREAMS + (index + 1) * pages, dtype=np.int32)
        placed.append(place_adapter(random_adapter(config, RANK, index), config, pool, own))
    return pool, placed


def _one_row_each(streams: int) -> StepBatch:
    """The first token of so many sequences: hardly any attention, all of the products."""
    one_each: Int32 = np.arange(streams + 1, dtype=np.int32)
    rows = one_each[:-1].copy()
    return StepBatch(rows + 1, np.zeros(streams, np.int32), one_each, one_each, rows, rows)


def _with_adapters(batch: StepBatch, placed: Sequence[PlacedAdapter]) -> StepBatch:
    streams = len(batch.token_ids)
    ids = np.arange(streams, dtype=np.int32) % np.int32(len(placed))
    own = StepAdapters(batch.slice_starts, ids, np.ones(streams, np.float32), tuple(placed))
    return replace(batch, adapters=own)
