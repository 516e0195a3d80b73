"""What rows of 8 bits with a scale every 32 inputs buy, with the file's own codes: prompts, and steps of many streams."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from headrace.evaluation.experiment import Claim, Conditions, interleave
from headrace.evaluation.statistics import median_ratio
from headrace.kernels.interface import PAGE_TOKENS, StepBatch
from headrace.kernels.native_chain import NativeChain
from headrace.models.catalog import OpenModel
from headrace.models.recoding import ROW_CHOICES, recode

_PROMPT, _STREAMS, _BEHIND = 512, 32, 140
_ASKED = {_PROMPT: 1.3, _STREAMS: 1.2}


def grouped_rows(conditions: Conditions, model: OpenModel) -> list[Claim]:
    """A prompt, and one step of many streams, on the same chain with rows of 16 and of 8 bits, in turns."""
    threads = conditions.threads or 2
    chains = [NativeChain(model.config, recode(model.weights, rows), threads) for rows in ROW_CHOICES]
    claims = []
    for what, batch in (
        (f"a prompt of {_PROMPT} tokens", _step(1, _PROMPT, 0)),
        (f"a step of {_STREAMS} streams", _step(_STREAMS, 1, _BEHIND)),
    ):
        runs = [_timed(chain, batch) for chain in chains]
        for run in runs:
            run()
        times = interleave(runs, 5 if conditions.quick else 15, partial(conditions.report, what))
        rows = len(batch.token_ids)
        note = ", ".join(f"{name} {1e3 * statistics.median(one):.1f} ms" for name, one in zip(ROW_CHOICES, times, strict=True))
        claims.append(
            Claim(f"group_rows_{rows}", f"{what}: time with rows of 16 bits / of 8 bits in groups", ">=", _ASKED[rows],
                  median_ratio(times[0], times[1]), "x", note)
        )  # fmt: skip
    return claims


def _step(streams: int, count: int, behind: int) -> StepBatch:
    """``count`` tokens of each stream behind ``behind`` others, whose pages are empty: time does not depend on them."""
    pages = -(-(behind + count) // PAGE_TOKENS)
    order = np.arange(streams + 1, dtype=np.int32)
    return StepBatch(
        token_ids=np.arange(100, 100 + streams * count, dtype=np.int32),
        positions=np.tile(np.arange(behind, behind + count, dtype=np.int32), streams),
        slice_starts=order * np.int32(count), page_starts=order * np.int32(pages),
        page_ids=np.arange(streams * pages, dtype=np.int32), output_rows=order[1:] * np.int32(count) - np.int32(1),
    )  # fmt: skip


def _timed(chain: NativeChain, batch: StepBatch) -> Callable[[], float]:
    pool = np.zeros((len(batch.page_ids), chain.page_layout.page_bytes), np.uint8)

    def run() -> float:
        began = time.perf_counter()
        chain.forward(batch, pool)
        chain.greedy(0, len(batch.output_rows))
        return time.perf_counter() - began

    return run
