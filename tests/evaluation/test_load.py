"""The load generator against a server whose delays are known."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.evaluation.load import LoadResult, LoadRun, LoadSettings, Record
from headrace.evaluation.load_report import as_json, plot, report
from headrace.evaluation.machine import inspect
from headrace.evaluation.streaming_client import parse_url

sys.path.insert(0, str(Path(__file__).parent))
from sse_server import Answering, Script, answering

BASE = LoadSettings(requests=20, concurrency=4, prompt="20", output="6")


def run(script: Callable[[int], Script], **changes: object) -> tuple[LoadResult, Answering]:
    async def inner() -> tuple[LoadResult, Answering]:
        async with answering(script) as server:
            url = f"http://127.0.0.1:{server.port}"
            return await LoadRun(dataclasses.replace(BASE, url=url, **changes)).run(), server  # type: ignore[arg-type]

    return asyncio.run(inner())


def test_percentiles_are_those_of_the_server() -> None:
    result, server = run(lambda i: Script(first=0.2 if i == 20 else 0.04, gap=0.02))
    found = report(result)
    assert (found.requests, found.finished, found.failures) == (20, 20, {})
    assert found.first_token.p50 == pytest.approx(40, abs=15)
    assert found.first_token.maximum == pytest.approx(200, abs=40)
    assert found.gap.p50 == pytest.approx(20, abs=8)
    assert found.gap.count == 20 * 5
    assert found.end_to_end.p50 == pytest.approx(140, abs=40)
    assert found.stream_rate.p50 == pytest.approx(50, rel=0.3)
    assert server.most == 4
    assert found.output_rate == pytest.approx(120 / result.seconds)


def test_prompts_have_the_asked_number_of_the_servers_own_tokens() -> None:
    result, server = run(lambda i: Script(first=0, gap=0), prompt="100", endpoint="completions")
    assert statistics.fmean(record.prompt_tokens for record in result.records) == pytest.approx(100, rel=0.05)
    assert {body["max_tokens"] for body in server.bodies[1:]} == {6}
    assert result.model == "tiny"


def test_open_loop_does_not_wait_for_answers() -> None:
    result, server = run(lambda i: Script(first=0.4, gap=0), concurrency=None, rate=50.0)
    assert server.most > 8
    assert result.records[-1].sent < 1.5
    assert report(result).late.p50 < 20


def test_failures_are_counted_by_kind_and_spoil_nothing_else() -> None:
    scripts = {1: Script(status=429), 2: Script(cut_after=2), 3: Script(error_after=1), 4: Script(pieces=0), 5: Script(first=9.0)}
    result, _ = run(lambda i: scripts.get(i, Script()), timeout=1.0)
    found = report(result)
    assert found.failures == {"http 429": 1, "cut off": 1, "stream error": 1, "no text": 1, "timeout": 1}
    assert found.finished == 15
    assert {record.detail for record in result.records if record.failure == "http 429"} == {"http 429: queue is full"}


def test_effective_throughput_counts_only_kept_promises() -> None:
    stalls = Script(gap=0.01, slow_piece=3, stall=0.8)
    result, _ = run(lambda i: stalls if i % 2 else Script(), prompt_rate=50.0, stream_rate=8.0)
    found = report(result)
    assert found.kept_promise == pytest.approx(0.5)
    assert found.effective_throughput == pytest.approx(found.request_rate / 2)


def test_key_path_and_extra_fields_reach_the_server(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame\n")
    _, server = run(lambda i: Script(first=0, gap=0), api_key_file=str(tmp_path / "key"), ignore_eos=True, requests=1)
    assert all("authorization: Bearer sesame" in head for head in server.heads)
    assert server.bodies[-1]["ignore_eos"] is True


def test_a_dead_server_is_one_clear_refusal() -> None:
    with pytest.raises(HeadraceError) as caught:
        asyncio.run(LoadRun(dataclasses.replace(BASE, url="http://127.0.0.1:1")).run())
    assert "127.0.0.1:1" in caught.value.message
    assert caught.value.param == "url"


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://a:b", "http://x/?q=1"])
def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(HeadraceError, match="url must look like"):
        parse_url(url)


def test_urls_may_end_in_v1() -> None:
    assert parse_url("https://host/base/v1/") == dataclasses.replace(parse_url("https://host"), path="/base")


def test_rate_and_concurrency_exclude_each_other() -> None:
    with pytest.raises(HeadraceError, match="not both"):
        LoadSettings(rate=1.0, concurrency=2)


def _result() -> LoadResult:
    good = Record(0, 0.0, 0.0, 10, 3, 0.1, (0.02, 0.03), 0.15)
    single = Record(1, 0.1, 0.0, 10, 1, 0.1, (), 0.1)
    failed = Record(2, 0.2, 0.0, 10, 0, 0.0, (), 1.0, "http 429", "http 429: queue is full")
    return LoadResult(LoadSettings(), "tiny", (good, single, failed), 1.2)


def test_json_has_no_numbers_that_json_lacks() -> None:
    document = as_json(_result(), report(_result()), inspect())
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["report"]["finished"] == 2
    empty = LoadResult(LoadSettings(), "tiny", (_result().records[2],), 1.0)
    assert as_json(empty, report(empty), inspect())["report"]["first_token"]["p50"] is None


def test_plot_is_drawn_or_refused_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    plot(_result(), tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(HeadraceError, match=r"headrace\[plot\]"):
        plot(_result(), tmp_path / "other.png")
