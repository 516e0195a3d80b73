"""Runs in real time, and what the fastgen experiment reads out of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from headrace.evaluation.experiment import Conditions
from headrace.evaluation.experiments._fastgen_setup import Sides
from headrace.evaluation.experiments._fastgen_stall import gaps_of
from headrace.evaluation.live_runs import LiveRun, Planned, Timing, client
from headrace.evaluation.trials import Bench
from headrace.evaluation.workload import Lengths


def _timing(sent: float, times: list[float], client: int | None, output: int | None = None) -> Timing:
    return Timing(Planned([1], len(times) if output is None else output), sent, client, times)


def test_gaps_tell_which_met_a_prompt() -> None:
    stream = _timing(0.0, [1.0, 2.0, 5.0, 6.0], client=0)
    prompt = _timing(2.5, [4.5, 4.6], client=None)
    gaps = gaps_of([stream, prompt], begin=0.0, end=10.0)
    assert gaps.every == (1.0, 1.0, 3.0)
    assert gaps.met == (3.0,)
    assert gaps.firsts == (2.0,)


def test_a_stream_that_starves_to_the_end_has_a_gap() -> None:
    stream = _timing(0.0, [1.0, 2.0], client=0, output=50)
    prompt = _timing(2.5, [], client=None, output=2)
    gaps = gaps_of([stream, prompt], begin=0.0, end=12.0)
    assert gaps.every == (1.0, 10.0)
    assert gaps.met == (10.0,)
    assert gaps.firsts == ()


def test_gaps_before_the_beginning_do_not_count() -> None:
    stream = _timing(0.0, [1.0, 2.0, 4.0], client=0)
    assert gaps_of([stream], begin=2.0, end=9.0).every == (2.0,)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench(Conditions(True, 0, "smollm2", None, lambda what, done, total: None)) as made:
        yield made


@pytest.mark.model
def test_clients_send_the_next_when_answered_and_the_clock_sends_the_others(bench: Bench) -> None:
    rng = random.Random(1)
    finite = [iter([Planned(bench.prompt(9, rng), 3), Planned(bench.prompt(5, rng), 4)]) for _ in range(2)]
    with LiveRun(bench.engine(), finite) as run:
        run.schedule([Planned(bench.prompt(40, rng), 2, at=0.05), Planned(bench.prompt(3, rng), 2, at=0.01)])
        window = run.run()
        assert run.done
    assert all(timing.finished for timing in run.timings)
    assert [len(timing.planned.prompt) for timing in run.timings if timing.client is None] == [3, 40]
    assert [timing.sent for timing in run.timings if timing.client is None] == pytest.approx([0.01, 0.05], abs=1e-6)
    for number in range(2):
        first, second = (timing for timing in run.timings if timing.client == number)
        assert first.times == sorted(first.times)
        assert second.sent == first.times[-1]
        assert second.first > 0
    assert window.prompt_tokens == 2 * (9 + 5) + 40 + 3
    assert window.generated == sum(timing.planned.output for timing in run.timings)
    assert 0 < window.overhead_seconds < window.step_seconds <= window.seconds


@pytest.mark.model
def test_what_still_runs_is_dropped_at_the_end(bench: Bench) -> None:
    engine = bench.engine()
    with LiveRun(engine, [client(bench, Lengths("fixed", 8), Lengths("fixed", 50), random.Random(2))]) as run:
        run.run(until=lambda: bool(run.timings and run.timings[0].times))
    assert not run.timings[0].finished
    assert engine.live == 0
    assert engine.scheduler.pool.free == engine.scheduler.pool.total


@pytest.mark.model
def test_sides_differ_by_policy_and_learn_apart(bench: Bench) -> None:
    sides = Sides(bench, Conditions(True, 0, "smollm2", None, lambda what, done, total: None), bench.built.calibration)
    split, whole = sides.split(), sides.whole()
    assert split.scheduler.budget.tokens == sides.knee
    assert whole.scheduler.settings.policy == "prompts_whole_first"
    assert whole.scheduler.budget.tokens == whole.scheduler.budget.items
    assert split.scheduler.cost is not whole.scheduler.cost
    assert split.scheduler.cost.coefficients() == pytest.approx(sides.calibration.cost.coefficients())
    prompt = bench.prompt(300, random.Random(3))
    with LiveRun(whole) as run:
        run.schedule([Planned(prompt, 2), Planned(prompt[:200], 2)])
        steps = run.run().steps
    assert steps == 2, "both prompts in one step, both second tokens in the next"


@pytest.mark.model
def test_same_seed_gives_the_same_requests(bench: Bench) -> None:
    sides = Sides(bench, Conditions(True, 5, "smollm2", None, lambda what, done, total: None), bench.built.calibration)
    first, second = (
        [next(one) for one in sides.clients(3, 20, 10, seed=4) for _ in range(2)],
        [next(one) for one in sides.clients(3, 20, 10, seed=4) for _ in range(2)],
    )
    assert first == second
    assert len({tuple(planned.prompt) for planned in first}) == 6
