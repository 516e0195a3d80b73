"""Requests that leave for a disk and come back give what they give undisturbed, also when the disk is slow, full or broken."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_chain import PAGE_TOKENS, VOCAB, Clock, Results, ToyChain, collect, toy_engine

from headrace.engine.loop import Engine, EngineParts
from headrace.engine.moving import Moving
from headrace.engine.request import Limits
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit
from headrace.kernels.sampler import Sampler
from headrace.memory.arena import Arena
from headrace.memory.disk_tier import DiskTier
from headrace.memory.mover import Mover
from headrace.memory.moves import MoveOptions, Moves
from headrace.memory.page_pool import PagePool
from headrace.scheduling.composer import POLICIES
from headrace.scheduling.cost import Cost
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.settings import SchedulingSettings
from headrace.scheduling.swapping import Swapping

PAGES = 24


@dataclass
class Faults:
    """What goes wrong in the tier: each call sleeps ``delay`` seconds; each ``every``-th write or read fails with ``code``."""

    delay: float = 0.0
    every_write: int = 0
    every_read: int = 0
    code: int = errno.EIO


class FaultyTier(DiskTier):
    """A disk tier with faults."""

    def __init__(self, arena: Arena, folder: Path, slots: int, faults: Faults) -> None:
        super().__init__(arena, folder, slots)
        self.faults = faults
        self.calls = {"write": 0, "read": 0}

    def write(self, page: int, slot: int, count: int) -> None:
        self._fault("write", self.faults.every_write)
        super().write(page, slot, count)

    def read(self, page: int, slot: int, count: int) -> None:
        self._fault("read", self.faults.every_read)
        super().read(page, slot, count)

    def _fault(self, kind: str, every: int) -> None:
        time.sleep(self.faults.delay)
        self.calls[kind] += 1
        if every and self.calls[kind] % every == 0:
            raise OSError(self.faults.code, "injected")


@contextmanager
def swapping_engine(
    folder: Path, faults: Faults, *, mode: str = "swap", synchronous: bool = False
) -> Iterator[tuple[Engine, Arena]]:
    chain = ToyChain()
    with Arena(PAGES, chain.page_layout.page_bytes) as arena:
        pool = PagePool(PAGES, PAGE_TOKENS)
        moves = Moves(pool, MoveOptions(200, run_pages=3))
        scheduler = Scheduler(
            SchedulingSettings(step_tokens=16), pool, Cost(), POLICIES.get("fcfs"), Swapping(moves, Cost(), 4096, mode)
        )
        moving = Moving(scheduler, Mover(FaultyTier(arena, folder, 200, faults)), synchronous=synchronous)
        limits = Limits(VOCAB, chain.config.context_length, chain.config.eos_ids)
        engine = Engine(EngineParts(chain, arena.bytes, scheduler, Sampler(VOCAB), limits, clock=Clock(), moving=moving))
        yield engine, arena
        engine.close()


def submits() -> list[Submit]:
    rng = random.Random(3)
    return [
        Submit(
            i, [rng.randrange(2, VOCAB) for _ in range(rng.choice((1, 4, 9, 17)))],
            SamplingParams(
                max_tokens=rng.randrange(8, 40), temperature=(0.0, 0.8)[i % 2], seed=i, ignore_eos=True, n=1 + 2 * (i % 3 == 2),
                top_logprobs=1,
            ),
        )
        for i in range(9)
    ]  # fmt: skip


def run(engine: Engine, arena: Arena, disturb: Callable[[int], None] | None = None, before: Sequence[Submit] = ()) -> Results:
    """All requests to their ends, those of ``before`` first; pages that nobody holds are poisoned after every step."""
    results: Results = {}
    coming, steps = [*before, *submits()], 0
    while coming or engine.live:
        if coming:
            engine.submit(coming.pop(0))
        outputs = engine.step()
        steps += 1
        engine.check_integrity()
        kept = set(engine.scheduler.pool.cached_pages())
        for page in range(PAGES):
            if engine.scheduler.pool.references(page) == 0 and page not in kept:
                arena.bytes[page] = 99
        if outputs is not None:
            collect(results, outputs.outputs)
        if disturb is not None:
            disturb(steps)
        assert steps < 20_000, "the engine does not come to an end"
    return results


def undisturbed(before: Sequence[Submit] = ()) -> Results:
    engine = toy_engine()
    results: Results = {}
    for submit in (*before, *submits()):
        engine.submit(submit)
        while engine.live:
            outputs = engine.step()
            collect(results, outputs.outputs if outputs is not None else [])
    return results


def preempts(engine: Engine, every: int) -> Callable[[int], None]:
    rng = random.Random(every)
    moving = engine._moving
    assert moving is not None

    def disturb(step: int) -> None:
        if step % every == 0:
            running = [choice.item for choice in engine._choices.values()]
            for item in rng.sample(running, min(2, len(running))):
                engine.scheduler.preempt(item)
            if rng.random() < 0.7:  # else they come back before anything has begun
                moving._issue(beside=False)
                moving.mover.wait(0.01)

    return disturb


@pytest.mark.parametrize("every", [1, 7, 25])
@pytest.mark.parametrize("synchronous", [False, True])
def test_forced_preemption_changes_nothing(every: int, synchronous: bool, tmp_path: Path) -> None:
    with swapping_engine(tmp_path, Faults(), synchronous=synchronous) as (engine, arena):
        assert run(engine, arena, preempts(engine, every)) == undisturbed()
        moves = engine.gauges().moves
        assert moves is not None
        assert moves.written_pages > 0
        assert moves.read_pages > 0
        while engine.moving:  # what is still carried for a request that has ended keeps its pages until then
            engine.step()
        assert engine.scheduler.pool.free == PAGES


@pytest.mark.parametrize(
    "faults",
    [
        Faults(delay=0.002), Faults(every_read=3), Faults(every_read=1), Faults(every_write=3),
        Faults(every_write=1, code=errno.ENOSPC), Faults(delay=0.001, every_write=4, every_read=4),
    ],
    ids=["slow", "read errors", "nothing can be read", "write errors", "disk full", "all at once"],
)  # fmt: skip
def test_a_bad_disk_costs_time_and_nothing_else(faults: Faults, tmp_path: Path) -> None:
    with swapping_engine(tmp_path, faults) as (engine, arena):
        assert run(engine, arena, preempts(engine, 3)) == undisturbed()
        moves = engine.gauges().moves
        assert moves is not None
        assert (moves.failures > 0) == bool(faults.every_write or faults.every_read)


@pytest.mark.parametrize("mode", ["swap", "recompute"])
def test_a_request_of_more_forks_than_there_are_pages_harms_nobody(mode: str, tmp_path: Path) -> None:
    bomb = Submit(
        99, [5, 6, 7, 8, 9], SamplingParams(max_tokens=30, temperature=0.9, seed=1, ignore_eos=True, n=24, top_logprobs=1)
    )
    assert PAGES * PAGE_TOKENS < 24 * 30, "all of it does not fit"
    with swapping_engine(tmp_path, Faults(), mode=mode) as (engine, arena):
        assert run(engine, arena, before=[bomb]) == undisturbed([bomb])
        while engine.moving:
            engine.step()
        assert engine.scheduler.pool.held == 0


def test_a_flipped_bit_on_the_disk_costs_one_request_its_pages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(7)
    with swapping_engine(tmp_path, Faults()) as (engine, arena):
        moving = engine._moving
        assert moving is not None
        tier = moving.mover.tier
        assert isinstance(tier, FaultyTier)
        again = preempts(engine, 5)

        def disturb(step: int) -> None:
            again(step)
            moving.settle()
            slots = moving._moves.slots
            stored = [slot for slot in range(slots.total) if slots.references(slot)]
            if stored and step % 3 == 0:
                with mmap.mmap(-1, 4096) as sector:
                    slot = rng.choice(stored)
                    assert os.preadv(tier._file, [sector], slot * 4096) == 4096
                    sector[rng.randrange(4 * PAGE_TOKENS)] ^= 1 << rng.randrange(8)
                    assert os.pwrite(tier._file, sector, slot * 4096) == 4096

        with caplog.at_level(logging.WARNING):
            assert run(engine, arena, disturb) == undisturbed()
        gauges = engine.gauges().moves
        assert gauges is not None
        assert gauges.failures > 0
        assert "did not come back as it went" in caplog.text


def test_cancelled_requests_leave_nothing_behind(tmp_path: Path) -> None:
    with swapping_engine(tmp_path, Faults(delay=0.001)) as (engine, arena):
        rng = random.Random(5)
        again = preempts(engine, 2)

        def disturb(step: int) -> None:
            again(step)
            if step % 5 == 0 and engine.live:
                engine.cancel(rng.choice(list(engine._requests)))

        run(engine, arena, disturb)
        while engine.moving:
            engine.step()
        engine.check_integrity()
        assert engine.scheduler.pool.free == PAGES


def test_auto_swaps_what_is_dearer_to_compute(tmp_path: Path) -> None:
    with swapping_engine(tmp_path, Faults(), mode="auto") as (engine, _):
        swapping = engine.scheduler.swapping
        assert swapping is not None
        engine.submit(Submit(0, list(range(2, 22)), SamplingParams(max_tokens=30, ignore_eos=True)))
        for _ in range(6):
            engine.step()
        (item,) = (choice.item for choice in engine._choices.values())
        assert swapping.is_cheaper(item)
        swapping.rates.read = 1.0
        assert not swapping.is_cheaper(item)
