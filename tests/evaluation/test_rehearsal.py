"""What is learnt from engines that serve is the time of whole turns."""

from __future__ import annotations

import pytest

from headrace.engine.watch_wire import StepReport
from headrace.evaluation.rehearsal import turns


def report(began: float, seconds: float, prompt: int = 0) -> StepReport:
    rows = {"decode": 2, "prompt": prompt}
    return StepReport(began, seconds, seconds / 2, 0.0, rows, 3, 0, [], [], pairs=40, heads=2)


def test_a_turn_is_a_step_and_what_lies_between() -> None:
    found = turns([report(1.0, 0.010), report(1.011, 0.020, 30), report(1.032, 0.010), report(9.0, 0.010)])
    assert [one.seconds for one in found] == pytest.approx([0.011, 0.021, 0.011, 0.011])  # idle seconds are nobody's
    assert [(one.tokens, one.pairs, one.rows) for one in found] == [(2, 40, 2), (32, 40, 2), (2, 40, 2), (2, 40, 2)]


def test_one_step_or_none() -> None:
    assert [one.seconds for one in turns([report(1.0, 0.5)])] == [0.5]
    assert turns([]) == []
