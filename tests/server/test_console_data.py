"""The data behind the console: journal, latencies, steps while somebody looks, and who may see what."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest
from conftest import Running
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.watch_wire import StepReport
from headrace.server.observing.engine_aliases import EngineAliases
from headrace.server.observing.journal import MOST_LIVES, MOST_STEPS, Journal
from headrace.server.observing.life import MOST_EVENTS, Life
from headrace.server.observing.windows import WINDOW_SECONDS, WINDOWS, LatencyWindows, bucket_of, edge_of, quantile


def life(engine_id: int = 1, model: str = "m") -> Life:
    return Life("r", model, model, "", "", 0.0, 0.0, 4, 1, engine_id)


def report(chunks: list[tuple[int, int]], preempted: list[int] | None = None) -> StepReport:
    return StepReport(1.0, 0.5, 0.4, 0.0, {"prompt": 3}, 1, 0, chunks, preempted or [])


@given(st.floats(0.0, 10_000.0))
def test_a_bucket_holds_its_time(seconds: float) -> None:
    bucket = bucket_of(seconds)
    if bucket:
        assert edge_of(bucket) * (1 - 1e-9) <= seconds
    if seconds < 499:
        assert seconds <= edge_of(bucket + 1) * (1 + 1e-9)


@given(st.lists(st.floats(0.001, 100.0), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_quantiles_are_those_of_the_times_to_one_bucket(times: list[float], share: float) -> None:
    counts: dict[int, int] = {}
    for time in times:
        counts[bucket_of(time)] = counts.get(bucket_of(time), 0) + 1
    exact = sorted(times)[max(0, math.ceil(share * len(times) - 1e-9) - 1)]
    assert exact * (1 - 1e-9) <= quantile(counts, share) <= exact * 1.13
    assert math.isnan(quantile({}, share))


def test_windows_are_bounded() -> None:
    now = [0.0]
    windows = LatencyWindows(lambda: now[0])
    for _ in range(WINDOWS + 50):
        windows.first_token(0.1)
        windows.gaps(0.02, 3)
        now[0] += WINDOW_SECONDS
    kept = windows.read()
    assert len(kept) == WINDOWS
    assert kept[-1].gap == {bucket_of(0.02): 3}
    now[0] += 10_000
    assert windows.read() == []


def test_the_journal_is_bounded_and_gives_steps_to_their_requests() -> None:
    journal = Journal()
    first = life(7)
    journal.begin(first)
    journal.note_steps("m", [report([(7, 3), (8, 1)], [7])])
    journal.note_steps("other", [report([(7, 100)])])
    assert first.chunks == [(1.0, 0.5, 3)]
    assert first.setbacks == [1.0]
    journal.end(first)
    journal.end(first)
    journal.note_steps("m", [report([(7, 2)])] * (MOST_STEPS + 10))
    assert len(first.chunks) == MOST_EVENTS
    assert [len(journal.steps(0, 10**6)), len(journal.steps(0, 5))] == [MOST_STEPS, 5]
    last = journal.steps(0, 1)[0].number
    assert journal.steps(last, 5) == []
    for number in range(MOST_LIVES + 20):
        journal.begin(one := life(number + 100))
        journal.end(one)
    assert len(journal.lives()) == MOST_LIVES
    journal.begin(running := life(5))
    assert journal.lives()[0] is running


def look(running: Running, query: str, key: str | None = None) -> Any:
    headers = {"authorization": f"Bearer {key}"} if key else running.headers
    with httpx.Client(base_url=running.url, headers=headers, timeout=30, trust_env=False) as http:
        answer = http.get(f"/console/data?{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.server
def test_steps_are_reported_while_somebody_looks(real: Running) -> None:
    real.post("/v1/completions", {"prompt": "One", "max_tokens": 4})
    look(real, "steps=1")
    real.post("/v1/completions", {"prompt": "A mill " * 40, "max_tokens": 12, "ignore_eos": True})
    data = look(real, "steps=1&requests=5&latencies=1")
    rows = [step["rows"] for step in data["steps"]]
    assert any(one.get("prompt", 0) > 5 for one in rows)
    assert sum(one.get("decode", 0) for one in rows) >= 11
    assert all(step["ms"] >= step["model_ms"] > 0 for step in data["steps"])
    assert look(real, f"steps=1&since={data['cursor']}")["steps"] == []
    newest = data["requests"][0]
    assert newest["finish"] == ["length"]
    assert newest["generated_tokens"] == 12
    assert newest["queued"] <= newest["first"] <= newest["last"] <= newest["ended"]
    assert sum(chunk[2] for chunk in newest["chunks"]) == newest["prompt_tokens"] - newest["cached_tokens"]
    assert sum(sum(window["gap"].values()) for window in data["latencies"]["windows"]) >= 11
    assert "mill" not in str(data["requests"])


@pytest.mark.server
@pytest.mark.parametrize(
    ("query", "param"),
    [("since=-1", "since"), ("since=x", "since"), ("requests=501", "requests"), ("steps=2", "steps"), ("since=1.5", "since"),
     ("other=1", "other"), ("since=99999999999999999", "since"), ("latencies=", "latencies")],
)  # fmt: skip
def test_queries_are_checked(echo: Running, query: str, param: str) -> None:
    answer = echo.get(f"/console/data?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.server
def test_keys_see_their_own_requests_and_operators_all(guest: Running) -> None:
    for key in ("sk-boss", "sk-guest"):
        with httpx.Client(base_url=guest.url, headers={"authorization": f"Bearer {key}"}, trust_env=False) as http:
            assert http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200
    own, boss = look(guest, "requests=9"), look(guest, "requests=9", "sk-boss")
    assert own["own_only"]
    assert {one["tenant"] for one in own["requests"]} == {"guest"}
    assert not boss["own_only"]
    assert {one["tenant"] for one in boss["requests"]} == {"boss", "guest"}
    with httpx.Client(base_url=guest.url, trust_env=False) as http:
        assert http.get("/console/data").status_code == 401
        assert http.get("/console/doctor").status_code == 401
        assert http.get("/").status_code == 200


def test_gateways_see_which_adapters_requests_have() -> None:
    journal = Journal()
    for engine_id, (name, first) in enumerate([("mill", 0.1), ("river", None), ("m", 0.1), ("sea", 0.2)]):
        journal.begin(one := life(engine_id))
        one.name, one.first = name, first
    journal.end(one)
    [family] = [family for family in EngineAliases([], journal).collect() if family.name == "vllm:lora_requests_info"]
    assert family.samples[0].labels == {"max_lora": "0", "running_lora_adapters": "mill", "waiting_lora_adapters": "river"}
