"""Rates of speculation on a machine that does other things meanwhile: of an answer's pieces, and of steps by their rows."""

from __future__ import annotations

import pytest

from headrace.evaluation.experiments._smartspec_setup import Mark, Spell, priced, undisturbed


def spell(seconds: list[float], streams: int = 1, drafted: int = 0) -> Spell:
    """One token a step and stream, and so many drafted tokens in every step, all wrong."""
    marks = [Mark(0, 0, 0.0)]
    for took in seconds:
        last = marks[-1]
        marks.append(Mark(last.tokens + streams, last.drafted + drafted, last.seconds + took))
    return Spell(streams, tuple(marks))


def test_a_disturbed_moment_of_one_round_does_not_count() -> None:
    quiet = [0.5] * 20
    first, second = [*quiet], [*quiet]
    first[3], second[17] = 9.0, 7.0
    assert undisturbed([spell(first), spell(second)]) == pytest.approx(2.0)
    assert undisturbed([spell(first)]) == pytest.approx(20 / 18.5)
    assert spell(quiet).rate == pytest.approx(2.0)


def test_steps_of_several_tokens_are_spread_over_them() -> None:
    steps = Spell(1, (Mark(0, 0, 0.0), Mark(6, 5, 3.0), Mark(12, 10, 6.0)))
    assert undisturbed([steps]) == pytest.approx(2.0)
    assert (steps.tokens, steps.steps) == (12, 2)


def test_steps_cost_what_steps_of_as_many_rows_cost() -> None:
    slow = [1.0] * 4 + [8.0]
    plain, drafting = [spell([1.0] * 8, 2), spell([1.0] * 8, 2)], [spell(slow, 2, 1), spell([2.0] * 5, 2, 1)]
    assert priced([plain, drafting]) == pytest.approx([2.0, 20 / 10.0])
    assert priced([plain, [spell([2.0] * 5, 2, 1)]]) == pytest.approx([2.0, 1.0])
