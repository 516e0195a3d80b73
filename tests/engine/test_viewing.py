"""Views in the loop, on a model that reads nothing but rows that stand one after the other: a wrong row shows at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from toy_chain import PAGE_TOKENS, VOCAB, Clock, Results, ToyChain, collect, toy_engine

from headrace.engine.loop import Engine, EngineParts
from headrace.engine.request import Limits
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.viewing import Viewing
from headrace.engine.wire import Submit
from headrace.kernels.interface import Bytes, Int32, PageLayout, StepBatch
from headrace.kernels.sampler import Sampler
from headrace.memory.arena import Arena
from headrace.memory.page_pool import PagePool
from headrace.memory.views import ViewPlan, Views
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings

PAGES = 60


class RowChain(ToyChain):
    """Reads rows that stand one after the other instead of the table wherever the batch says so."""

    def __init__(self) -> None:
        super().__init__()
        self.page_layout = PageLayout(PAGE_TOKENS, 4096)
        self.in_rows = self.by_table = self.aliased = 0

    def forward(self, batch: StepBatch, pool: Bytes) -> None:
        """As the toy's; who reads wrong rows gets wrong tokens."""
        assert batch.first_rows is not None
        self._rows = {
            batch.page_ids[batch.page_starts[s] : batch.page_starts[s + 1]].tobytes(): int(first)
            for s, first in enumerate(batch.first_rows)
        }
        self.by_table += int((batch.first_rows < 0).sum())
        self.in_rows += int((batch.first_rows >= 0).sum())
        self.aliased += int((batch.first_rows >= PAGES).sum())
        super().forward(batch, pool)

    def _fold(self, memory: Int32, pages: Int32, last: int) -> np.ndarray:
        first = self._rows[pages.tobytes()]
        return super()._fold(memory, pages if first < 0 else np.arange(first, first + len(pages), dtype=np.int32), last)


@contextmanager
def viewing_engine(ranges: int, ahead: int, pages: int = PAGES) -> Iterator[tuple[Engine, RowChain]]:
    chain, plan = RowChain(), ViewPlan(ranges, 24)
    with Arena(PAGES, 4096, 1, plan.rows) as arena:
        scheduler = Scheduler(SchedulingSettings(step_tokens=16), PagePool(pages, PAGE_TOKENS), Cost(), POLICIES.get("fcfs"))
        limits = Limits(VOCAB, chain.config.context_length, chain.config.eos_ids)
        viewing = Viewing(Views(arena, plan, ahead=ahead))
        engine = Engine(EngineParts(chain, arena.rows, scheduler, Sampler(VOCAB), limits, clock=Clock(), viewing=viewing))
        yield engine, chain
        engine.close()


def submits() -> list[Submit]:
    rng = random.Random(4)
    start = [rng.randrange(2, VOCAB) for _ in range(11)]
    return [
        Submit(
            i, [*start[: rng.choice((0, 8, 11))], *(rng.randrange(2, VOCAB) for _ in range(rng.choice((1, 5, 13))))],
            SamplingParams(
                max_tokens=rng.randrange(6, 30), temperature=(0.0, 0.8)[i % 2], seed=i, ignore_eos=True, n=1 + 2 * (i % 3 == 2),
                top_logprobs=1,
            ),
        )
        for i in range(12)
    ]  # fmt: skip


def run(engine: Engine) -> Results:
    results: Results = {}
    coming = submits()
    while coming or engine.live:
        if coming:
            engine.submit(coming.pop(0))
        outputs = engine.step()
        engine.check_integrity()
        collect(results, outputs.outputs if outputs is not None else [])
    return results


@pytest.mark.parametrize(("ranges", "ahead"), [(40, 4), (40, 0), (2, 4), (0, 4)])
@pytest.mark.parametrize("pages", [PAGES, 30])
def test_every_way_to_read_gives_the_same(ranges: int, ahead: int, pages: int) -> None:
    expected: Results = {}
    for submit in submits():
        alone = toy_engine()
        alone.submit(submit)
        while alone.live:
            outputs = alone.step()
            collect(expected, outputs.outputs if outputs is not None else [])
    with viewing_engine(ranges, ahead, pages) as (engine, chain):
        assert run(engine) == expected
        gauges = engine.gauges().views
        assert gauges is not None
        assert (gauges.refused > 0) == (ranges < 40)
        assert (chain.aliased > 0) == (ranges > 0)
        assert (gauges.ahead_pages > 0) == (ahead > 0 < ranges)
        assert chain.in_rows > 0
        assert (chain.by_table > 0) == (ranges < 40)
        assert gauges.inline_seconds > 0


def test_an_engine_without_views_says_so() -> None:
    assert toy_engine().gauges().views is None
