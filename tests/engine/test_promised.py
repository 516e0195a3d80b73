"""Requests that can't have their first token as promised are refused at once, and leave nothing behind."""

from __future__ import annotations

from toy_chain import Clock, Results, Shape, collect, toy_engine

from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import Submit

PROMISED_MS = 500


def test_late_requests_are_refused_and_the_others_get_what_they_get_alone() -> None:
    clock = Clock()
    engine = toy_engine(Shape(step_tokens=16, pages=64, promised_ms=PROMISED_MS), clock=clock)
    for number, choices in enumerate((1, 2, 3, 1)):
        engine.submit(Submit(number, [2 + number] * 40, SamplingParams(max_tokens=4, ignore_eos=True, n=choices)))
    results: Results = {}
    engine.step()
    clock.now += 2 * PROMISED_MS / 1000
    while engine.live:
        outputs = engine.step()
        collect(results, [] if outputs is None else outputs.outputs)
        engine.check_integrity()
    refused = engine.take_refused()
    assert [(one.request_id, one.code) for one in refused] == [(2, "overloaded"), (3, "overloaded")] or [
        one.request_id for one in refused
    ] == [1, 2, 3]
    assert {key[0] for key in results} == {0, 1, 2, 3} - {one.request_id for one in refused}
    assert all(len(result.tokens) == 4 for result in results.values())
    assert engine.scheduler.counters.refused == len(refused)
    assert engine.scheduler.pool.available == 64


def test_nobody_is_refused_without_a_promise() -> None:
    clock = Clock()
    engine = toy_engine(Shape(step_tokens=16, pages=64), clock=clock)
    for number in range(4):
        engine.submit(Submit(number, [2 + number] * 40, SamplingParams(max_tokens=4, ignore_eos=True)))
    while engine.live:
        clock.now += 100.0
        engine.step()
    assert engine.take_refused() == []
