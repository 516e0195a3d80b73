"""Requests from distributions and from traces."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.planning.workload import Lengths, Traffic, read_trace

TRAFFIC = Traffic(Lengths("lognormal", 80, 0.6), Lengths("lognormal", 40, 0.5), longest=200)


def test_the_same_requests_at_any_rate() -> None:
    slow, fast = list(TRAFFIC.arrivals(1.0, 500, 7)), list(TRAFFIC.arrivals(4.0, 500, 7))
    assert [(one.prompt, one.output) for one in slow] == [(one.prompt, one.output) for one in fast]
    assert [one.time for one in slow] == pytest.approx([4 * one.time for one in fast])
    assert all(one.prompt >= 1 and one.output >= 1 and one.prompt + one.output <= 200 for one in slow)
    assert all(before.time < after.time for before, after in pairwise(slow))


def test_a_trace_is_sorted_begins_at_zero_and_is_drawn_together(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    lines = [{"time": 108.0, "prompt": 5, "output": 7}, {"time": 100, "prompt": 90, "output": 300}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    trace = read_trace(file, 100)
    assert [(one.time, one.prompt, one.output) for one in trace.requests] == [(0.0, 90, 10), (8.0, 5, 7)]
    assert trace.rate == 0.25
    assert [one.time for one in trace.arrivals(0.5, 10, 0)] == [0.0, 4.0]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[]", "object"),
        ("{", "line 2"),
        ('{"time": 1, "prompt": 0, "output": 1}', "'prompt'"),
        ('{"time": 1, "prompt": 1, "output": 1.5}', "'output'"),
        ('{"time": true, "prompt": 1, "output": 1}', "'time'"),
        ('{"time": 1e400, "prompt": 1, "output": 1}', "'time'"),
        ('{"prompt": 1, "output": 1}', "'time'"),
        ('{"time": 1, "prompt": 1, "output": 1, "x": "' + "a" * 5000 + '"}', "longer"),
        ("[" * 4000, "line 2"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, why: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"time": 0, "prompt": 1, "output": 1}\n' + line + "\n")
    with pytest.raises(HeadraceError, match=why) as caught:
        read_trace(file, 100)
    assert caught.value.param == "trace"
    assert "line 2" in caught.value.message


def test_an_empty_or_missing_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    for name, why in (("empty", "0 requests"), ("missing", "can't read")):
        with pytest.raises(HeadraceError, match=why):
            read_trace(tmp_path / name, 100)
