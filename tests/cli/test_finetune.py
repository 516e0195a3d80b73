"""``headrace finetune`` from a file to a model, its curve, and what it says when it can't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_tiny_model

from headrace.cli.curve import curve
from headrace.cli.main import run

Capture = pytest.CaptureFixture[str]
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_CONFIG", raising=False)
    monkeypatch.setenv("HEADRACE_POOL_MIB", "64")


@pytest.mark.server
def test_a_file_becomes_a_model(tmp_path: Path, capsys: Capture) -> None:
    words = ("red", "blue", "green", "black")
    good = tmp_path / "good.jsonl"
    turns = [[{"role": "user", "content": f"{word}?"}, {"role": "assistant", "content": f"the {word} wheel"}] for word in words]
    good.write_text("\n".join(json.dumps({"messages": messages}) for messages in turns))
    base = str(write_tiny_model(tmp_path / "tiny"))
    where = ["--base", base, "--state-dir", str(tmp_path / "state")]
    more = ["--epochs", "8", "--batch", "2", "--learning-rate", "20", "--suffix", "wheel", "--seed", "1"]
    assert run(["finetune", str(good), *where, *more, "--validation", str(good)]) == 0
    told = capsys.readouterr().out
    assert "succeeded after 16 of 16 steps" in told
    assert "model: ft:tiny:wheel:" in told
    assert "held-out loss" in told
    assert "┤" in told
    assert "×" in told
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    assert run(["finetune", str(bad), *where]) == 1
    assert "line 1: 'messages' has no message of the role 'assistant'" in capsys.readouterr().err


def test_what_can_not_be_honoured(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text("{}")
    for arguments, problem in (
        (["--detach"], "--detach needs the --url"),
        (["--url", "ftp://x"], "url must begin with"),
        (["--url", "http://127.0.0.1:1"], "no answer from"),
        (["--method", "magic"], "method must be one of supervised, dpo"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--base", "no-such-model"], "the server did not start"),
    ):
        assert run(["finetune", str(file), *arguments, "--state-dir", str(tmp_path / "state")]) == 2
        assert problem in capsys.readouterr().err
    assert run(["finetune", str(tmp_path / "none")]) == 2


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30), st.lists(st.tuples(NUMBERS, NUMBERS), max_size=5))
def test_curves_stay_in_their_frame(line: list[tuple[float, float]], marks: list[tuple[float, float]]) -> None:
    drawn = curve(sorted(line), marks, width=20, height=4)
    if len(line) < 2:
        assert drawn == []
        return
    assert len(drawn) == 6
    assert all(len(text) <= 12 + 20 for text in drawn[:5])
    assert sum(text.count("×") for text in drawn) <= len(marks)


def test_a_falling_curve_falls() -> None:
    drawn = curve([(1, 4.0), (2, 2.0), (3, 1.0)], [(3, 4.0)], width=12, height=4)
    assert drawn[0].startswith("         4 ┤")
    assert drawn[3].startswith("         1 ┤")
    assert drawn[0][12] != " "
    assert drawn[0][-1] == "×"
    assert drawn[3][-1] != " "
    assert drawn[-1].split() == ["1", "3"]
    assert curve([(1, float("nan")), (2, 1.0)]) == []
