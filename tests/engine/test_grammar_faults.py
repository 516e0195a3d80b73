"""Grammars that fail, wait or stall: whatever one does, the engine and its neighbours go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from toy_chain import EOS, Clock, Shape, run, submit, toy_engine

from headrace.engine.choosing import MASK_SECONDS
from headrace.engine.loop import Engine
from headrace.engine.request import MASK_WINDOW
from headrace.engine.sampling_params import GrammarSpec, SamplingParams
from headrace.engine.wire import Refused, Submit
from headrace.errors import HeadraceError

CONSTRAINED = SamplingParams(max_tokens=12, temperature=0.0, logit_bias={EOS: -100.0}, grammar=GrammarSpec("json_object", ""))
FREE = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


@dataclass
class Faulty:
    """A grammar that allows everything, and its compiler and matcher at once; ``fails`` names what raises ValueError.

    ``burn``: seconds of work a mask, one a token. ``gate``: compilations wait for it.
    """

    fails: str = ""
    burn: tuple[float, ...] = ()
    gate: threading.Event = field(default_factory=threading.Event)
    compiled: int = 0
    masks: int = 0

    def compile(self, spec: GrammarSpec) -> Faulty:
        assert self.gate.wait(20)
        self.compiled += 1
        return self._maybe("compile")

    def matcher(self) -> Faulty:
        return self._maybe("matcher")

    def mask(self, out: npt.NDArray[np.uint32]) -> None:
        self._maybe("mask" if self.masks == 2 else "")
        until = time.thread_time() + (self.burn[self.masks] if self.masks < len(self.burn) else 0.0)
        while time.thread_time() < until:
            pass
        self.masks += 1
        out[:] = 0xFFFFFFFF

    def advance(self, token: int) -> bool:
        self._maybe("advance" if self.masks == 2 else "")
        return True

    def is_complete(self) -> bool:
        self._maybe("is_complete" if self.masks == 2 else "")
        return False

    def fork(self) -> Faulty:
        raise AssertionError("nothing is drafted here")

    def allowed(self, tokens: Sequence[int]) -> int:
        raise AssertionError("nothing is drafted here")

    def forced(self) -> Sequence[int]:
        raise AssertionError("nothing is drafted here")

    def _maybe(self, what: str) -> Faulty:
        if what and what == self.fails:
            raise ValueError("the grammar is upset")
        return self


def opened(grammars: Faulty) -> Faulty:
    grammars.gate.set()
    return grammars


@pytest.fixture(name="gated")
def _gated() -> Iterator[Faulty]:
    grammars = Faulty()
    yield grammars
    grammars.gate.set()


def neighbour_alone() -> list[int]:
    engine = toy_engine()
    submit(engine, 1, [5, 6, 7], FREE)
    return run(engine)[1, 0].tokens


@pytest.mark.parametrize("fails", ["compile", "matcher"])
def test_any_failure_of_the_compiler_refuses_its_request_only(fails: str) -> None:
    engine = toy_engine(grammars=opened(Faulty(fails)))
    submit(engine, 1, [5, 6, 7], FREE)
    submit(engine, 2, [5, 6, 8], CONSTRAINED)
    results = run(engine)
    assert (set(results), results[1, 0].tokens) == ({(1, 0)}, neighbour_alone())
    [refused] = engine.take_refused()
    assert isinstance(refused, Refused)
    assert (refused.request_id, refused.code) == (2, "internal_error")
    assert "upset" not in refused.message
    assert engine.scheduler.pool.free == engine.scheduler.pool.total
    engine.close()


@pytest.mark.parametrize("fails", ["mask", "advance", "is_complete"])
def test_a_matcher_that_fails_ends_its_own_choice_only(fails: str) -> None:
    engine = toy_engine(grammars=opened(Faulty(fails)))
    submit(engine, 1, [5, 6, 7], FREE)
    submit(engine, 2, [5, 6, 8], CONSTRAINED)
    results = run(engine)
    assert results[1, 0].tokens == neighbour_alone()
    assert results[2, 0].finish == "error"
    assert len(results[2, 0].tokens) == 2
    engine.close()


def expect_full(engine: Engine, request_id: int, params: SamplingParams) -> None:
    with pytest.raises(HeadraceError) as refused:
        submit(engine, request_id, [5, 6], params)
    assert refused.value.code == "queue_full"


def test_requests_behind_the_compiler_count_as_waiting(gated: Faulty) -> None:
    engine = toy_engine(Shape(max_waiting=3), grammars=gated)
    for request_id in (1, 2):
        submit(engine, request_id, [5, 6], CONSTRAINED)
    submit(engine, 3, [5, 6], FREE)
    before = engine.scheduler.counters.refused
    expect_full(engine, 4, CONSTRAINED)
    expect_full(engine, 5, FREE)
    assert engine.scheduler.counters.refused == before + 2
    assert engine.gauges().waiting == 3
    gated.gate.set()
    assert {result.finish for result in run(engine).values()} == {"length"}
    submit(engine, 4, [5, 6], CONSTRAINED)
    assert set(run(engine)) == {(4, 0)}
    engine.close()


@pytest.mark.parametrize("way", ["cancelled", "deadline"])
def test_what_nobody_waits_for_is_never_compiled(gated: Faulty, way: str) -> None:
    clock = Clock()
    engine = toy_engine(clock=clock, grammars=gated)
    submit(engine, 1, [5, 6], CONSTRAINED)
    for request_id in (2, 3, 4):
        engine.submit(Submit(request_id, [5, 6], CONSTRAINED, deadline=1.0 if way == "deadline" else None))
    if way == "deadline":
        clock.now += 2
        engine.step()
    else:
        for request_id in (2, 3, 4):
            engine.cancel(request_id)
    assert engine.compiling == 1
    gated.gate.set()
    assert run(engine)[1, 0].finish == "length"
    engine.compiler.close(wait=True)
    assert gated.compiled == 1


def test_a_grammar_whose_masks_stall_the_step_ends_soon() -> None:
    grammars = opened(Faulty(burn=(1.5 * MASK_SECONDS,) * MASK_WINDOW))
    engine = toy_engine(grammars=grammars)
    submit(engine, 1, [5, 6, 7], FREE)
    submit(engine, 2, [5, 6, 8], CONSTRAINED)
    results = run(engine)
    assert results[2, 0].finish == "error"
    assert grammars.masks == 6
    assert results[1, 0].tokens == neighbour_alone()
    engine.close()


def test_a_slow_mask_now_and_then_is_forgiven() -> None:
    slow = 0.6 * MASK_SECONDS * MASK_WINDOW
    engine = toy_engine(grammars=opened(Faulty(burn=(slow, *(0.0,) * (MASK_WINDOW - 1), slow))))
    submit(engine, 2, [5, 6, 8], CONSTRAINED)
    assert run(engine)[2, 0].finish == "length"
    engine.close()
