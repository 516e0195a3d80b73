"""The frame of experiments: claims, interleaving, documents and the results page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, Relation, Series, interleave
from headrace.evaluation.experiments import find, names
from headrace.evaluation.machine import inspect, package_versions, read_bandwidth
from headrace.evaluation.results import document, plot, results_page


@pytest.mark.parametrize(
    ("relation", "asked", "measured", "holds"),
    [
        (">=", 2, 2.0, True),
        (">=", 2, 1.9, False),
        ("<=", 3, 3.1, False),
        ("==", 100, 100.0, True),
        ("==", 100, 99.9, False),
        (">=", 0, math.nan, False),
    ],
)
def test_claims_hold_by_their_relation(relation: Relation, asked: float, measured: float, holds: bool) -> None:
    assert Claim("x", "x", relation, asked, measured).holds is holds


def test_interleaving_turns_the_order_round() -> None:
    order: list[str] = []

    def variant(name: str, value: int) -> int:
        order.append(name)
        return value

    outcomes = interleave([lambda: variant("a", 1), lambda: variant("b", 2)], rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert outcomes == [[1, 1, 1], [2, 2, 2]]


def _experiment(findings: Findings) -> Experiment:
    return Experiment("sample", "A sample.", "Nobody, 2026", 0.1, lambda conditions: findings)


def test_documents_are_valid_json_and_make_the_page(tmp_path: Path) -> None:
    claims = Claim("gap", "p95 gap", ">=", 3.7, 4.25, "x"), Claim("loss", "rate", ">=", 0.97, math.nan, "x", "not measured")
    conditions = Conditions(True, 7, "smollm2", 2, lambda what, done, total: None)
    experiment = _experiment(Findings(claims))
    made = document(experiment, conditions, experiment.run(conditions), inspect(), 1.0)
    (tmp_path / "sample.json").write_text(json.dumps(made, allow_nan=False))
    page = results_page(tmp_path)
    assert "| p95 gap | >= 3.7 | 4.25 | x | yes |" in page
    assert "| rate (not measured) | >= 0.97 | – | x | **no** |" in page
    assert made["items"][0] == {
        "id": "gap",
        "what": "p95 gap",
        "asked": ">= 3.7",
        "measured": 4.25,
        "unit": "x",
        "holds": True,
        "note": "",
    }
    assert "No result" in results_page(tmp_path / "empty")


def test_series_are_plotted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot("t", [Series("on", "rows", "ms", (1, 2), (3, 4)), Series("off", "rows", "ms", (1, 2), (5, 6))], tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_every_experiment_is_found_under_its_own_name() -> None:
    for name in names():
        experiment = find(name)
        assert experiment.name == name
        assert experiment.source
    with pytest.raises(HeadraceError, match="no experiment"):
        find("nothing-like-it")


def test_machine_facts_are_plausible() -> None:
    machine = inspect()
    assert machine.cores >= 1
    assert 0 < machine.available_gib <= machine.memory_gib
    assert machine.revision.startswith("0.")
    assert 0.1 < read_bandwidth(1, mebibytes=8, rounds=2) < 2000
    assert package_versions(("numpy", "no-such-package"))["no-such-package"] == "not installed"
