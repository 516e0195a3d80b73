"""Lengths of drafts: what water-filling finds against trying everything, and what is learnt of guesses."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from headrace.scheduling.acceptance import Acceptance, OwnRecord, survival
from headrace.scheduling.cost import Cost
from headrace.scheduling.goodput import WORTH, Margin, choose_lengths, least_survival

FLAT, STEEP = (4e-3, 1e-5, 0.0, 0.0, 0.0, 0.0, 1e-5, 0.0), (1e-3, 1e-3, 2e-4, 3e-4, 0.0, 1e-6, 5e-4, 0.0)


def cost_of(values: tuple[float, ...]) -> Cost:
    names = Cost().coefficients()
    return Cost.from_dict({"format": 1, "coefficients": dict(zip(names, values, strict=True)), "observed": 100, "spread": 0.02})


def goodput(streams: list[tuple[int, list[float]]], lengths: tuple[int, ...], margin: Margin, cost: Cost) -> float:
    tokens, pairs, rows, adapters = margin.load
    for (start, _), length in zip(streams, lengths, strict=True):
        pairs += length * (start + 1) + length * (length + 1) // 2
    value = margin.value + sum(sum(chances[:length]) for (_, chances), length in zip(streams, lengths, strict=True))
    return value / cost.predict(tokens + sum(lengths), pairs, rows + sum(lengths), adapters)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("values", [FLAT, STEEP])
def test_water_filling_finds_what_trying_everything_finds(seed: int, values: tuple[float, ...]) -> None:
    rng, cost = random.Random(seed), cost_of(values)
    streams = []
    for _ in range(rng.randint(1, 3)):
        chances = [1.0]
        for _ in range(rng.randint(0, 4)):
            chances.append(chances[-1] * rng.random() ** 0.3)
        streams.append((100, chances[1:]))
    rows = len(streams)
    margin = Margin((rows, 101 * rows, rows, 0), rows + rng.choice((0.0, 40.0)), rng.choice((2, 100)))
    found = tuple(choose_lengths(streams, margin, cost))
    every = itertools.product(*(range(len(chances) + 1) for _, chances in streams))
    best = max(goodput(streams, one, margin, cost) for one in every if sum(one) <= margin.room)
    plain = goodput(streams, (0,) * rows, margin, cost)
    assert sum(found) <= margin.room
    assert goodput(streams, found, margin, cost) == pytest.approx(best if best > WORTH * plain else plain, rel=1e-3)


def test_a_bound_on_time_is_kept() -> None:
    cost = cost_of(STEEP)
    streams = [(10, [0.99] * 20)]
    margin = Margin((1, 11, 1, 0), 1.0, 50, cost.predict(4, 60, 4))
    assert 0 < choose_lengths(streams, margin, cost)[0] <= 3


def test_nothing_pays_where_a_row_costs_what_a_token_brings() -> None:
    cost = cost_of((1e-6, 1e-3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    assert least_survival(8, 800, cost) > 0.99
    assert choose_lengths([(10, [0.98, 0.97])] * 8, Margin((8, 88, 8, 0), 8.0, 50), cost) == [0] * 8


def test_rates_of_right_guesses_are_unbiased_whatever_is_verified() -> None:
    """True chances 0.9 and 0.4 by grade; runs end at the first wrong guess, as verification sees them."""
    rng, acceptance = random.Random(1), Acceptance((0.5, 0.5))
    for _ in range(3000):
        for grade in (1, 1, 0, 1):
            right = rng.random() < (0.4, 0.9)[grade]
            acceptance.observe(grade, right=right)
            if not right:
                break
    assert acceptance.chance(0) == pytest.approx(0.4, abs=0.08)
    assert acceptance.chance(1) == pytest.approx(0.9, abs=0.05)


def test_a_stream_that_fares_worse_than_others_is_trusted_less_and_again_when_it_fares_better() -> None:
    acceptance, own = Acceptance((0.9,)), OwnRecord()
    usual = sum(0.9**length for length in range(1, 6))
    for _ in range(20):
        own.observe(0.9, right=False)
    assert sum(survival(acceptance, own, [0] * 5, 0.01)) < 0.1 * usual
    for _ in range(100):
        own.observe(0.9, right=True)
    assert sum(survival(acceptance, own, [0] * 5, 0.01)) > 0.9 * usual


def test_a_stream_begins_in_doubt_which_right_guesses_take_from_it() -> None:
    acceptance, own = Acceptance((0.3, 0.6)), OwnRecord()
    assert survival(acceptance, own, [0], 0.05) == []
    assert survival(acceptance, own, [1], 0.05) == pytest.approx([0.2], abs=0.03)
    factors = [own.factor]
    for _ in range(3):
        own.observe(0.6, right=True)
        factors.append(own.factor)
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 2.0
    assert factors[-1] < 0.6
    lucky, unlucky = OwnRecord(), OwnRecord()
    for _ in range(40):
        lucky.observe(0.6, right=True)
        unlucky.observe(0.6, right=True)
    unlucky.observe(0.6, right=False)
    assert lucky.factor < unlucky.factor < 0.2


def fares(chances: Sequence[float], streams: int, tokens: int) -> tuple[Acceptance, list[OwnRecord]]:
    """Tokens of one grade, right with a chance of their stream, the streams in turn."""
    rng = random.Random(2)
    acceptance, own = Acceptance((0.5,)), [OwnRecord() for _ in range(streams)]
    for number in range(tokens * streams):
        stream = number % streams
        right = rng.random() < chances[stream % len(chances)]
        acceptance.compare(0, own[stream], right=right)
        own[stream].observe(acceptance.chance(0), right=right)
        acceptance.observe(0, right=right)
    return acceptance, own


def test_where_all_fare_alike_a_run_of_luck_says_little() -> None:
    acceptance, own = fares((0.6,), 4, 80)
    assert max(abs(one.factor - 1.0) for one in own) > 0.2
    assert max(abs(acceptance.own_share(one) - 1.0) for one in own) < 0.15


def test_where_streams_differ_their_own_records_count_nearly_in_full() -> None:
    acceptance, own = fares((0.95, 0.1), 2, 80)
    assert acceptance.own_share(own[0]) < 0.4
    assert acceptance.own_share(own[1]) > 1.4


def test_a_surest_grade_and_a_hopeless_one_are_compared_without_fault() -> None:
    acceptance, own = Acceptance((0.0, 1.0)), OwnRecord()
    for right in (True, False) * 40:
        for grade in (0, 1):
            acceptance.compare(grade, own, right=right)
            own.observe(acceptance.chance(grade), right=right)
    assert 0.0 < acceptance.own_share(own) < 100.0
