"""Calibration: measured once, remembered, and measured again when the file is of no use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy_chain import ToyChain

from headrace.engine.calibration import Calibration, calibrate, load, save, store_path
from headrace.scheduling.cost import Cost
from headrace.scheduling.knee import KNEE_STEPS, LARGEST


def test_the_knee_is_a_size_of_step_and_the_cost_has_learnt() -> None:
    chain = ToyChain()
    pages = np.zeros((300, chain.page_layout.page_bytes), np.uint8)
    measured = calibrate(chain, pages, seconds=0.2)
    assert KNEE_STEPS[0].tokens <= measured.knee <= LARGEST
    assert measured.knee_seconds > 0
    assert measured.cost.observed >= 3
    assert max(chain.steps) <= 300 * chain.page_layout.tokens


def test_the_smallest_pool_is_enough() -> None:
    chain = ToyChain(context_length=16)
    measured = calibrate(chain, np.zeros((4, chain.page_layout.page_bytes), np.uint8), seconds=0.02)
    assert measured.knee == KNEE_STEPS[0].tokens


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    path = store_path(tmp_path, {"cpu": "a", "threads": 2})
    assert path != store_path(tmp_path, {"cpu": "a", "threads": 1})
    assert load(path) is None
    cost = Cost()
    cost.observe(16, 136, 1, 0.01)
    save(path, Calibration(64, 0.05, cost))
    stored = load(path)
    assert stored is not None
    assert (stored.knee, stored.knee_seconds, stored.cost.coefficients()) == (64, 0.05, cost.coefficients())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 1}, {"knee": 0}, {"knee": "64"}, {"knee": 10**9}, {"knee_seconds": -1.0}, {"knee_seconds": None}, {"cost": None},
        {"cost": {}}, {"cost": {"format": 1, "coefficients": {"base": float("nan")}}},
    ],
)  # fmt: skip
def test_a_damaged_file_is_not_believed(damage: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = store_path(tmp_path, {})
    save(path, Calibration(64, 0.05, Cost()))
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert load(path) is None
    assert "measured again" in caplog.text
    path.write_text("{")
    assert load(path) is None


def test_a_folder_that_cannot_be_written_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "calibration").write_text("a file where the folder should be")
    save(store_path(tmp_path, {}), Calibration(64, 0.05, Cost()))
    assert "can't be stored" in caplog.text
