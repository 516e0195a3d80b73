"""Servers measured in turns: started, loaded, compared, stopped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.evaluation.peers import Measure, PeerSettings, compare
from headrace.evaluation.results import results_page
from headrace.models.catalog import find_model


def test_ratios_are_taken_round_by_round() -> None:
    measure = Measure("", "", {"a": [10.0, 40.0, 30.0], "b": [5.0, 10.0, 30.0]})
    assert measure.median("a") == 30.0
    assert measure.ratio("a", "b") == 2.0


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
    peer.write_text("#!/bin/sh\nexit 3\n")
    peer.chmod(0o700)
    model = find_model("smollm2").path
    assert model is not None
    with pytest.raises(HeadraceError, match="exit code 3"):
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
