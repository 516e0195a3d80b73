"""Counts of who was turned away, and few lines about them."""

from __future__ import annotations

import json
import logging

import pytest

from headrace.engine.identity import difference
from headrace.engine.refusals import QUIET_SECONDS, Refusals

logger = logging.getLogger("headrace.test_refusals")


def test_each_reason_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = [50.0]
    refusals = Refusals(logger, "a guest", lambda: now[0])
    for _ in range(5):
        refusals.note("stranger", "x came")
    refusals.note("silent", "y came")
    assert refusals.counts == {"stranger": 5, "silent": 1}
    assert refusals.total == 6
    now[0] += QUIET_SECONDS
    refusals.note("stranger", "z came")
    assert [record.message for record in caplog.records] == [
        "a guest was refused: x came; others like it are only counted",
        "a guest was refused: y came; others like it are only counted",
        "a guest was refused: z came (5 of this kind since the last such line); others like it are only counted",
    ]
    assert refusals["nobody"] == 0


def test_what_differs_is_named() -> None:
    mine = {"version": "1", "model": "m", "files": "f", "device": "cpu", "weights": "auto", "kv": "bf16"}
    ours = json.dumps(mine)
    assert difference(ours, ours) is None
    assert difference(ours, json.dumps({**mine, "kv": "fp8", "weights": "q8"})) == (
        "weights", "its weights' format is q8, the server's is auto",
    )  # fmt: skip
    for hostile in ("", "[]", "{}", "3", '{"version": "1"}', "{" * 100_000):
        assert difference(ours, hostile) == ("version", "it says what it has in another way than this version does")
