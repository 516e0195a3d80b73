"""Cost: known coefficients come back, outliers don't, and the inverse is the inverse."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.scheduling.cost import Cost, StepTime
from headrace.scheduling.knee import CONTEXT_STEPS, KNEE_STEPS

Load = tuple[int, int, int]


def true_seconds(load: Load, speed: float = 1.0) -> float:
    tokens, pairs, rows = load
    return speed * (4.5e-3 + 1.5e-4 * tokens + 3e-4 * max(0, tokens - 8) + 2.2e-8 * pairs + 1.1e-4 * rows)


def random_load(generator: random.Random) -> Load:
    """Decodes and a prompt chunk over contexts of 64 to 4,096, as a server sees them."""
    decodes = generator.choice((0, 1, 1, 4, 16, 64))
    chunk = generator.choice((0, 0, 16, 64, 128, 256)) if decodes else generator.choice((16, 64, 128, 256))
    contexts = [generator.randint(64, 4096) for _ in range(decodes)]
    start = generator.randint(0, 3000)
    return decodes + chunk, sum(contexts) + chunk * start + chunk * (chunk + 1) // 2, decodes + (chunk > 0)


def fractions_within(cost: Cost, generator: random.Random, speed: float = 1.0) -> float:
    loads = [random_load(generator) for _ in range(500)]
    good = sum(abs(cost.predict(*load) / true_seconds(load, speed) - 1) <= 0.1 for load in loads)
    return good / len(loads)


@pytest.mark.parametrize("seed", range(3))
def test_known_coefficients_come_back(seed: int) -> None:
    generator = random.Random(seed)
    cost = Cost()
    for _ in range(600):
        load = random_load(generator)
        cost.observe(*load, true_seconds(load) * generator.gauss(1, 0.02))
    found = cost.coefficients()
    assert found["base"] == pytest.approx(4.5e-3, rel=0.05)
    assert found["token_beyond_3"] + found["token_beyond_8"] + found["token"] + found["token_beyond_32"] == pytest.approx(
        4.5e-4, rel=0.05
    )
    assert found["pair"] == pytest.approx(2.2e-8, rel=0.08)
    assert found["logit_row"] == pytest.approx(1.1e-4, rel=0.2)
    assert fractions_within(cost, generator) == 1.0
    assert cost.errors().within_tenth > 0.95


def test_preempted_threads_hardly_matter() -> None:
    generator = random.Random(5)
    cost = Cost()
    for _ in range(800):
        load = random_load(generator)
        delay = generator.uniform(2, 20) if generator.random() < 0.08 else 1.0
        cost.observe(*load, true_seconds(load) * generator.gauss(1, 0.03) * delay)
    assert fractions_within(cost, generator) >= 0.95


def test_a_lasting_change_of_speed_is_learnt() -> None:
    generator = random.Random(6)
    cost = Cost()
    for speed in (1.0, 2.0):
        for _ in range(1500):
            load = random_load(generator)
            cost.observe(*load, true_seconds(load, speed) * generator.gauss(1, 0.03))
        assert fractions_within(cost, generator, speed) >= 0.95


@pytest.mark.parametrize("speed", [0.1, 0.5, 2.0, 10.0])
def test_the_pace_of_the_machine_is_followed_within_tens_of_steps(speed: float) -> None:
    generator = random.Random(1)
    cost = Cost()
    for _ in range(500):
        load = random_load(generator)
        cost.observe(*load, true_seconds(load) * generator.gauss(1, 0.05))
    for _ in range(60):
        load = random_load(generator)
        cost.observe(*load, true_seconds(load, speed) * generator.gauss(1, 0.05))
    assert fractions_within(cost, generator, speed) >= 0.9


@pytest.mark.parametrize("seed", range(4))
def test_calibration_alone_predicts_other_steps(seed: int) -> None:
    generator = random.Random(seed)
    cost = Cost()
    for step in (*KNEE_STEPS, *CONTEXT_STEPS):
        load = (step.tokens, step.pairs, step.slices)
        cost.observe(*load, true_seconds(load) * generator.uniform(1, 1.05))
    assert fractions_within(cost, generator) >= 0.95


def test_days_of_equal_steps_forget_nothing() -> None:
    generator = random.Random(7)
    cost = Cost()
    for _ in range(400):
        load = random_load(generator)
        cost.observe(*load, true_seconds(load))
    for _ in range(10_000):
        cost.observe(1, 200, 1, true_seconds((1, 200, 1)))
    assert fractions_within(cost, generator) >= 0.95


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_nothing_measured_makes_a_coefficient_negative(data: st.DataObject) -> None:
    cost = Cost()
    measured = st.tuples(st.integers(0, 2000), st.integers(0, 10**7), st.integers(0, 300), st.floats(1e-6, 100))
    for tokens, pairs, rows, seconds in data.draw(st.lists(measured, max_size=40)):
        cost.observe(tokens, pairs, rows, seconds)
        assert all(value >= 0 for value in cost.coefficients().values())
        assert cost.predict(1, 1, 1) > 0


@settings(max_examples=200, deadline=None)
@given(
    seconds=st.floats(0, 2),
    tokens=st.integers(0, 100),
    pairs=st.integers(0, 10**6),
    rows=st.integers(0, 64),
    start=st.integers(0, 8000),
)
def test_most_tokens_within_is_the_inverse_of_predict(*, seconds: float, tokens: int, pairs: int, rows: int, start: int) -> None:
    cost = Cost()
    generator = random.Random(1)
    for _ in range(100):
        load = random_load(generator)
        cost.observe(*load, true_seconds(load))
    most = cost.max_tokens_within(seconds, (tokens, pairs, rows), start)

    def step(count: int) -> float:
        return cost.predict(tokens + count, pairs + count * start + count * (count + 1) // 2, rows)

    assert most == 0 or step(most) <= seconds * (1 + 1e-9)
    assert step(most + 2) > seconds


def test_a_stored_cost_goes_on() -> None:
    generator = random.Random(2)
    cost = Cost()
    for _ in range(200):
        load = random_load(generator)
        cost.observe(*load, true_seconds(load))
    again = Cost.from_dict(json.loads(json.dumps(cost.to_dict())))
    assert again.coefficients() == cost.coefficients()
    assert again.observed == 200
    for _ in range(1500):
        load = random_load(generator)
        again.observe(*load, true_seconds(load, 1.5))
    assert fractions_within(again, generator, 1.5) >= 0.95


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"coefficients": None},
        {"coefficients": {"base": 1.0}},
        {"spread": float("nan")},
        {"spread": -1.0},
        {"observed": "many"},
    ],
)
def test_damaged_files_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(HeadraceError, match="stored step times"):
        Cost.from_dict({**Cost().to_dict(), **change})


@pytest.mark.parametrize("value", [-1.0, float("inf"), "fast"])
def test_damaged_coefficients_are_refused(value: object) -> None:
    data = Cost().to_dict()
    data["coefficients"]["pair"] = value
    with pytest.raises(HeadraceError, match="stored step times"):
        Cost.from_dict(data)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="positive time"):
        Cost().observe(1, 1, 1, seconds)


def test_errors_before_anything_ran() -> None:
    assert Cost().errors().count == 0


def test_what_adapters_cost_comes_back_beside_everything_else() -> None:
    generator = random.Random(8)
    cost = Cost()
    for _ in range(800):
        load = random_load(generator)
        pages = generator.choice((0, 0, 10, 40, 160))
        cost.observe(*load, true_seconds(load) * generator.gauss(1, 0.02) + 4e-5 * pages, pages)
    assert cost.coefficients()["adapter_page"] == pytest.approx(4e-5, rel=0.1)
    assert cost.coefficients()["base"] == pytest.approx(4.5e-3, rel=0.07)
    assert cost.errors().within_tenth > 0.9


def test_times_stored_before_there_were_adapters_are_still_read() -> None:
    stored = Cost().to_dict()
    del stored["coefficients"]["adapter_page"]
    assert Cost.from_dict(stored).coefficients() == Cost().coefficients()


def test_a_refit_gives_what_steps_took_in_all_and_each() -> None:
    generator = random.Random(11)
    cost = Cost()
    loads = [random_load(generator) for _ in range(400)]
    times = [true_seconds(load) * (6.0 if number % 40 == 0 else 1.0) for number, load in enumerate(loads)]  # hiccups count
    found = cost.refitted([StepTime(*load, seconds) for load, seconds in zip(loads, times, strict=True)])
    assert sum(found.predict(*load) for load in loads) == pytest.approx(sum(times))
    plain = cost.refitted([StepTime(*load, true_seconds(load)) for load in loads])
    assert all(plain.predict(*load) == pytest.approx(true_seconds(load), rel=0.05) for load in loads)
    assert cost.to_dict() == Cost().to_dict()


def test_a_refit_keeps_proportions_of_which_it_hears_nothing() -> None:
    cost = Cost()
    found = cost.refitted([StepTime(1, 100, 1, 2 * cost.predict(1, 100, 1))] * 50)
    assert found.predict(64, 5000, 4) == pytest.approx(2 * cost.predict(64, 5000, 4), rel=0.02)
    assert cost.refitted([]).to_dict() == cost.to_dict()
