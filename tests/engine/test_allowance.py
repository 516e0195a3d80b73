"""An engine whose pool shrinks and grows beneath it: requests get what they get alone, and memory is where it is said to be."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_chain import VOCAB, Results, Shape, collect, run, submit, toy_engine

from headrace.engine.allowance import PATIENT_STEPS, Allowance
from headrace.engine.lending_wire import Lending
from headrace.engine.loop import Engine
from headrace.engine.sampling_params import SamplingParams
from headrace.errors import HeadraceError
from headrace.memory.arena import Arena

SIZE = 4096
TOTAL, OWN = 32, 16


def prompt_of(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(length)]


def shared_engine(arena: Arena) -> tuple[Engine, Allowance]:
    engine = toy_engine(Shape(pages=TOTAL, step_tokens=16))
    engine._pages = arena.bytes
    return engine, Allowance(engine.scheduler, arena, Lending(TOTAL * SIZE, 8 * SIZE), OWN)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 24)), min_size=1, max_size=8), st.integers(0, 10**6))
def test_whatever_is_allowed_meanwhile_every_request_gets_what_it_gets_alone(asked: list[tuple[int, int]], seed: int) -> None:
    rng = random.Random(seed)
    with Arena(TOTAL, SIZE) as arena:
        engine, allowance = shared_engine(arena)
        coming = [(i, prompt_of(i, length), SamplingParams(max_tokens=most, seed=i)) for i, (length, most) in enumerate(asked)]
        found: Results = {}
        for turn in range(20_000):
            if coming and rng.random() < 0.3:
                submit(engine, *coming.pop())
            if rng.random() < 0.2 or (engine.live and not engine.scheduler.running):
                allowance.allow(rng.randint(4, TOTAL) * SIZE if turn % 3 else OWN * SIZE)
            allowance.follow()
            engine.check_integrity()
            outputs = engine.step()
            if outputs is not None:
                collect(found, outputs.outputs)
            if not coming and not engine.live:
                break
        assert not engine.live
        for i, (length, most) in enumerate(asked):
            single = toy_engine(Shape(step_tokens=2048, pages=256))
            submit(single, i, prompt_of(i, length), SamplingParams(max_tokens=most, seed=i))
            assert found[i, 0] == run(single)[i, 0]
        engine.close()


def test_memory_goes_back_and_who_needs_more_than_it_has_waits_for_its_own() -> None:
    with Arena(TOTAL, SIZE) as arena:
        engine, allowance = shared_engine(arena)
        pool = engine.scheduler.pool
        assert (pool.usable, engine.gauges().pages_total) == (8, 8)
        with pytest.raises(HeadraceError, match="the page pool holds 64"):
            submit(engine, 0, prompt_of(0, 60), SamplingParams(max_tokens=10))
        submit(engine, 1, prompt_of(1, 50), SamplingParams(max_tokens=10, ignore_eos=True))
        assert engine.step() is None
        assert (engine.scheduler.waiting, engine.live) == (1, 1)
        allowance.allow(OWN * SIZE)
        assert allowance.follow()
        assert len(run(engine)[1, 0].tokens) == 10
        assert os.fstat(arena.fileno()).st_blocks * 512 >= 15 * SIZE
        allowance.allow(4 * SIZE)
        assert allowance.follow()
        assert not allowance.follow()
        assert (pool.usable, pool.held) == (4, 0)
        assert os.fstat(arena.fileno()).st_blocks * 512 <= 4 * SIZE
        engine.close()


def test_streams_give_way_to_who_lent_the_pages() -> None:
    with Arena(TOTAL, SIZE) as arena:
        engine, allowance = shared_engine(arena)
        allowance.allow(TOTAL * SIZE)
        allowance.follow()
        for i in range(4):
            submit(engine, i, prompt_of(i, 4), SamplingParams(max_tokens=28, ignore_eos=True, seed=i))
        for _ in range(12):
            engine.step()
        assert engine.scheduler.pool.held > 10
        allowance.allow(8 * SIZE)
        for _ in range(PATIENT_STEPS):
            allowance.follow()
        engine.scheduler.counters.steps += PATIENT_STEPS + 1  # as if they had only come on slowly
        while engine.scheduler.pool.usable > 8:
            assert allowance.follow() or engine.live > 0
        assert engine.scheduler.counters.preemptions > 0
        assert engine.scheduler.running >= 1, "the oldest goes on"
        assert all(len(one.tokens) == 28 for one in run(engine).values()) or engine.live == 0
        engine.close()
