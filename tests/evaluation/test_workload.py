"""Arrivals, lengths and text of a load."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.evaluation.workload import Lengths, Shape, arrival_times, parse_lengths, passage, requests


@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_arrivals_have_the_asked_rate_and_burstiness(shape: float) -> None:
    times = list(itertools.islice(arrival_times(5.0, shape, random.Random(1)), 4000))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(0.2, rel=0.1)
    variation = statistics.stdev(gaps) / statistics.fmean(gaps)
    assert variation == pytest.approx(shape**-0.5, rel=0.12)


@pytest.mark.parametrize(
    ("text", "median", "low", "high"),
    [
        ("128", 128, 128, 128),
        ("fixed:7", 7, 7, 7),
        ("normal:200:0.3", 200, 1, 600),
        ("lognormal:100:0.8", 100, 1, 10**5),
        ("uniform:4:8", 6, 4, 8),
    ],
)
def test_lengths_follow_their_distribution(text: str, median: int, low: int, high: int) -> None:
    rng = random.Random(2)
    drawn = [parse_lengths(text, "prompt").draw(rng) for _ in range(4000)]
    assert statistics.median(drawn) == pytest.approx(median, rel=0.1)
    assert low <= min(drawn) <= max(drawn) <= high


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "0", "normal:10", "nromal:10:0.3", "fixed:1:2", "uniform:a:b", "nan", "1e9", "inf"]
)
def test_bad_lengths_are_refused_by_name(text: str) -> None:
    with pytest.raises(HeadraceError) as caught:
        parse_lengths(text, "prompt")
    assert caught.value.param == "prompt"
    if text.startswith("nromal"):
        assert "did you mean 'normal'" in caught.value.message


@given(st.integers(0, 2**32), st.integers(1, 20))
def test_the_same_seed_gives_the_same_requests(seed: int, count: int) -> None:
    shape = Shape(Lengths("normal", 40, 0.3), Lengths("fixed", 8))
    assert requests(shape, count, seed) == requests(shape, count, seed)


def test_prompts_share_as_many_prefixes_as_asked() -> None:
    shape = Shape(Lengths("fixed", 60), Lengths("fixed", 8), prefixes=3, prefix_tokens=30, tokens_per_word=1.5)
    planned = requests(shape, 60, 0)
    assert len({tuple(request.prompt.split()[:20]) for request in planned}) == 3
    assert len({request.prompt for request in planned}) > 40
    assert all(len(request.prompt.split()) == 40 for request in planned)


def test_passages_are_running_text() -> None:
    words = passage(500, random.Random(3)).split()
    assert len(words) == 500
    assert len(set(words)) > 100
    assert "the" in words
