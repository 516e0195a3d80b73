"""The measurement of adapters runs, on different adapters, and its ratios are those of its times."""

from __future__ import annotations

import pytest

from headrace.evaluation import adapter_speed
from headrace.evaluation.adapter_speed import AdapterSpeed, measure_adapters
from headrace.models.catalog import find_model, open_model


def test_ratios() -> None:
    speed = AdapterSpeed(32, 4, 16, 40.0, seconds=0.05, base_seconds=0.04, reading_seconds=0.002)
    assert speed.slowdown == pytest.approx(1.25)
    assert speed.of_reading == pytest.approx(5.0)


@pytest.mark.model
def test_measures_steps_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STREAMS", 4), ("DISTINCT", (1, 2)), ("RANK", 2), ("_TRIALS", 2)):
        monkeypatch.setattr(adapter_speed, name, value)
    found = measure_adapters(open_model(find_model("smollm2")), 1, lambda *_: None)
    assert [(speed.distinct, speed.rank) for speed in found] == [(1, 2), (2, 2)]
    assert found[1].megabytes == pytest.approx(2 * found[0].megabytes)
    assert all(0 < speed.seconds < 10 for speed in found)
    assert all(0 < speed.reading_seconds < speed.base_seconds for speed in found)
