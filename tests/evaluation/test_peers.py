"""Servers measured in turns: started, loaded, compared, stopped."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.evaluation.contestants import Contestant
from headrace.evaluation.measures import Measure
from headrace.evaluation.peer_speculation import SpeculationRounds, fresh_share
from headrace.evaluation.peers import PeerSettings, compare
from headrace.evaluation.results import plot_peers, results_page
from headrace.models.catalog import find_model


def test_ratios_are_taken_round_by_round() -> None:
    measure = Measure("", "", {"a": [10.0, 40.0, 30.0], "b": [5.0, 10.0, 30.0]})
    assert measure.median("a") == 30.0
    assert measure.ratio("a", "b") == 2.0


def test_less_is_better_where_it_is_and_the_best_peer_counts() -> None:
    measure = Measure("", "ms", {"headrace": [10.0, 10.0], "a": [30.0, 50.0], "b": [20.0, math.nan]}, lower=True)
    assert measure.ratio("headrace", "a") == 4.0
    assert measure.ratio("headrace", "b") == 2.0
    assert measure.lead() == 2.0
    assert math.isnan(Measure("", "", {"headrace": [math.nan], "a": [1.0]}).lead())


@pytest.mark.parametrize("names", [("a", "a"), ("headrace",)])
def test_names_differ(names: tuple[str, ...]) -> None:
    with pytest.raises(HeadraceError, match="names that differ"):
        PeerSettings(peer=tuple(f"{name}=http://127.0.0.1:1" for name in names))


def test_a_failed_measure_is_a_dash(tmp_path: Path) -> None:
    measure = {"what": "8 streams", "unit": "output tok/s", "values": {"headrace": [20.0], "other": [None]}, "lower": False}
    settings = asdict(PeerSettings()) | {"peer": ["other"]}
    run = {"kind": "peers", "machine_line": "", "settings": settings, "measures": [measure], "notes": ["other: 1 of 8 failed"]}
    (tmp_path / "peers.json").write_text(json.dumps(run))
    page = results_page(tmp_path)
    assert "| 8 streams | output tok/s | 20 | – | – |" in page
    assert "- other: 1 of 8 failed" in page


def test_measures_are_drawn(tmp_path: Path) -> None:
    plot_peers([Measure("1", "a", {"headrace": [2.0], "b": [math.nan]}), Measure("2", "s", {"headrace": [2.0], "b": [1.0]}, True)],
               tmp_path / "peers.png")  # fmt: skip
    assert (tmp_path / "peers.png").stat().st_size > 1000


@pytest.mark.parametrize("peer", ["nowhere", "=x"])
def test_a_peer_needs_a_name_and_a_place(peer: str) -> None:
    with pytest.raises(HeadraceError, match="NAME=WHERE"):
        PeerSettings(peer=(peer,))


def test_a_peer_that_is_nowhere_is_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = PeerSettings(peer=(f"ghost={tmp_path / 'llama-server'}",))
    with pytest.raises(HeadraceError, match="ghost"):
        compare(settings, tmp_path / "model.gguf", lambda *_: None)


@pytest.mark.server
@pytest.mark.model
def test_a_peer_that_dies_at_once_is_named(tmp_path: Path) -> None:
    peer = tmp_path / "llama-server"
    peer.write_text("#!/bin/sh\necho no such tensor >&2\nexit 3\n")
    peer.chmod(0o700)
    model = find_model("smollm2").path
    assert model is not None
    with pytest.raises(HeadraceError, match="dead ended with exit code 3: no such tensor"):
        compare(PeerSettings(peer=(f"dead={peer}",), threads=1), model, lambda *_: None)


def test_a_recorded_run_becomes_a_table(tmp_path: Path) -> None:
    measure = {
        "what": "1 stream",
        "unit": "output tok/s",
        "values": {"headrace": [200.0, 180.0, 190.0], "other": [100.0, 90.0, 95.0]},
    }
    settings = asdict(PeerSettings()) | {"peer": ["other"]}
    run = {"kind": "peers", "machine_line": "a machine", "settings": settings, "measures": [measure]}
    (tmp_path / "peers.json").write_text(json.dumps(run))
    assert "| 1 stream | output tok/s | 190 | 95 | 2.00× |" in results_page(tmp_path)


@pytest.mark.model
def test_a_server_that_does_not_answer_has_no_rate_and_a_line() -> None:
    found = SpeculationRounds("smollm2", 1, 16, {"gone": Contestant("gone", "http://127.0.0.1:9")}, lambda *_: None).run()
    assert [measure.what for measure in found.measures] == ["copy", "edit", "code", "extract", "chat"]
    assert all(math.isnan(measure.values["gone"][0]) for measure in found.measures)
    assert len(found.notes) == 5


def test_an_answer_that_goes_round_in_circles_is_noticed() -> None:
    assert fresh_share("Classes " * 40) < 0.1
    assert fresh_share("1. Oil the gate. 2. Feed the horses. 3. Mend the roof.") == 1.0
    assert fresh_share("yes") == 1.0


def test_recorded_guesses_have_a_table_of_their_own(tmp_path: Path) -> None:
    measure = {"what": "copy", "unit": "output tok/s", "values": {"headrace": [500.0], "other": [100.0]}}
    settings = asdict(PeerSettings(workload="speculation", output=96)) | {"peer": ["other"]}
    run = {"kind": "peers", "machine_line": "a machine", "settings": settings, "measures": [measure]}
    (tmp_path / "peers_speculation.json").write_text(json.dumps(run))
    page = results_page(tmp_path)
    assert "## Speculation beside other servers" in page
    assert "up to 96 tokens" in page
    assert "| copy | output tok/s | 500 | 100 | 5.00× |" in page
