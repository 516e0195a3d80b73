"""``headrace plan`` and ``headrace simulate`` on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.cli.main import run


def test_plan_measures_simulates_and_prints_what_to_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    code = run(["plan", "--requests", "60", "--rate", "0.5", "--prompt", "40", "--output", "12", "--json", str(file)])
    shown = capsys.readouterr().out
    assert code == 0
    assert "headrace serve --" in shown
    assert "95 % interval" in shown
    document = json.loads(file.read_text())
    plans = document["plans"]
    assert len({one["layout"] for one in plans}) == len(plans) >= 4
    assert plans[0]["requests_per_second"] >= max(one["requests_per_second"] for one in plans) * 0.97
    assert all(0 <= one["kept_at_rate"] <= 1 for one in plans)
    assert document["targets"]["ttft_seconds"] > document["targets"]["tpot_seconds"] > 0


def test_plan_from_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps({"time": 2.0 * i, "prompt": 20 + i, "output": 8}) + "\n" for i in range(60)))
    assert run(["plan", "--trace", str(file)]) == 0
    assert "requests/s" in capsys.readouterr().out
    file.write_text("{}\n")
    assert run(["plan", "--trace", str(file)]) == 2
    assert "line 1" in capsys.readouterr().err


def test_simulate_prints_latencies(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--instances", "20", "--requests", "500", "--rate", "20", "--dispatch", "round_robin"]) == 0
    assert "500 requests on 20 instances" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["plan", "--prompt", "weird:3"], "unknown distribution"),
        (["plan", "--share", "0"], "share"),
        (["simulate", "--instances", "1001"], "instances"),
        (["simulate", "--dispatch", "freeest"], "freest"),
    ],
)
def test_bad_wishes_are_refused(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert why in capsys.readouterr().err
