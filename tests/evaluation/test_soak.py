"""A soak in short against a real server, and its judges alone: each can say no."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from headrace.cli.main import run
from headrace.evaluation.soak.asks import Ask, essence
from headrace.evaluation.soak.plain_http import Reply, _parse
from headrace.evaluation.soak.report import checks
from headrace.evaluation.soak.run import SoakResult
from headrace.evaluation.soak.watch import Held, Watch, growth_mib

STREAM = Ask("text", "/v1/completions", {"stream": True})


@pytest.mark.server
def test_a_short_soak_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny_model(tmp_path / "tiny", context=1024)
    file = tmp_path / "soak.json"
    arguments = ["--minutes", "0.05", "--people", "4", "--pool-mib", "16", "--model", str(model), "--json", str(file)]
    assert run(["bench", "soak", *arguments]) == 0, capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["asked"] == found["answered"]
    assert all(check["holds"] for check in found["checks"])
    assert found["rests"] >= 3
    wanted = {
        "fine-tuning job",
        "batch",
        "background response",
        "adapter loaded and unloaded",
        "crowd",
        "fine-tuning job cancelled",
    }
    assert wanted <= set(found["disturbances"])


def sent(*texts: str, end: str = "data: [DONE]\n\n") -> Reply:
    events = [{"choices": [{"index": 0, "text": text, "logprobs": {"token_logprobs": [-0.5] * len(text)}}]} for text in texts]
    return Reply(200, ("".join(f"data: {json.dumps(event)}\n\n" for event in events) + end).encode(), True)


def test_a_stream_is_what_it_says_however_it_was_cut() -> None:
    whole = essence(STREAM, sent("abc"))
    assert whole is not None
    assert essence(STREAM, sent("a", "bc")) == whole
    assert essence(STREAM, sent("a", "bd")) != whole
    assert essence(STREAM, sent("abc", end="")) is None
    assert essence(STREAM, sent("abc", end='data: {"error": {"code": "engine_dead"}}\n\ndata: [DONE]\n\n')) is None
    assert essence(STREAM, Reply(200, sent("abc").body, False)) is None
    assert essence(STREAM, Reply(503, sent("abc").body, True)) is None


def test_a_changed_bit_of_a_number_is_another_answer() -> None:
    ask = Ask("text", "/v1/completions", {})
    one, other, named = (
        Reply(200, json.dumps({"id": name, "choices": [{"logprobs": [number]}]}).encode(), True)
        for name, number in (("a", 0.1), ("a", 0.1 + 2**-56), ("b", 0.1))
    )
    assert essence(ask, one) == essence(ask, named)
    assert essence(ask, one) != essence(ask, other)


def test_answers_that_are_cut_off_are_seen() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    assert _parse(chunked + b"0\r\n\r\n") == Reply(200, b"abc", True)
    assert _parse(chunked) == Reply(200, b"abc", False)
    assert _parse(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc") == Reply(200, b"abc", False)
    assert _parse(b"HTTP/1.1 200") == Reply(0, b"", False)


def watched(resident: list[int]) -> Watch:
    watch = Watch(os.getpid())
    watch.samples["engine", 1] = [Held(at, size, 20, 4) for at, size in enumerate(resident)]
    return watch


def test_each_judge_can_say_no() -> None:
    def broken(result: SoakResult) -> list[str]:
        return [check.what for check in checks(result) if not check.holds]

    good = SoakResult(exit_code=0)
    assert broken(good) == []
    good.asked["text"] = 1
    assert broken(good) == ["requests without a whole answer"]
    for change in (
        {"wrong": ["x"]},
        {"faults": ["x"]},
        {"left_over": ["x"]},
        {"engines": {1, 2}},
        {"log": ["x"]},
        {"exit_code": -9},
    ):
        assert len(broken(SoakResult(**({"exit_code": 0} | change)))) == 1, change
    steady, mib = [100 * 2**20] * 40, 2**20
    assert broken(SoakResult(exit_code=0, watch=watched(steady))) == []
    assert broken(SoakResult(exit_code=0, watch=watched([mib * at for at in range(100, 180, 2)])))
    for rests in ([(20, 4), (30, 4)], [(20, 4), (20, 30)]):
        at_rest = [{"server": Held(0, 1, files, threads)} for files, threads in rests]
        assert len(broken(SoakResult(exit_code=0, at_rest=at_rest))) == 1


def test_growth_looks_past_the_beginning() -> None:
    assert growth_mib([Held(0, size * 2**20, 0, 0) for size in (1, 50, 50, 50, 50, 50, 51, 51)]) == 1.0


def test_a_watch_sees_this_process() -> None:
    watch = Watch(os.getpid())
    watch.look()
    [held] = watch.samples["server", os.getpid()]
    assert held.resident > 2**20
    assert held.files > 0
    assert held.threads > 0
    assert watch.engines() == []
