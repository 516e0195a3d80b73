"""Allowances: what a key has, what it gets back, and how it is told."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from conftest import Running, launch_server
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.server.auth import KeyRules
from headrace.server.rate_limits import Claim, RateLimits, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admit(limits: RateLimits, tenant: str, prompt_tokens: int) -> Claim:
    """Let a request in whose size nobody knows before, and tell its prompt."""
    claim = limits.enter(tenant, 0)
    claim.settle(prompt_tokens)
    return claim


def limits(requests: int | None, tokens: int | None) -> tuple[RateLimits, Clock]:
    clock = Clock()
    return RateLimits({"a": KeyRules(requests, tokens), "b": KeyRules(1, 1)}, clock), clock


def test_requests_run_out_and_come_back_one_by_one() -> None:
    allowed, clock = limits(6, None)
    for _ in range(6):
        admit(allowed, "a", 100)
    with pytest.raises(HeadraceError, match=r"6 requests a minute. Try again in 10s") as caught:
        admit(allowed, "a", 1)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.retry_after == pytest.approx(10.0)
    clock.now += 10.0
    admit(allowed, "a", 1)
    with pytest.raises(HeadraceError):
        admit(allowed, "a", 1)


def test_a_refusal_takes_nothing() -> None:
    allowed, _ = limits(100, 50)
    admit(allowed, "a", 50)
    for _ in range(10):
        with pytest.raises(HeadraceError, match="50 tokens a minute"):
            admit(allowed, "a", 10)
    assert dict(allowed.headers("a"))[b"x-ratelimit-remaining-requests"] == b"99"


def test_generated_tokens_are_waited_off_later() -> None:
    allowed, clock = limits(None, 60)
    admit(allowed, "a", 10).used(110)
    clock.now += 60.0
    with pytest.raises(HeadraceError, match="has used them up") as caught:
        admit(allowed, "a", 20)
    assert caught.value.retry_after == pytest.approx(1.0), "nothing is known of the prompt yet"
    clock.now += 1.0
    with pytest.raises(HeadraceError) as caught:
        admit(allowed, "a", 20)
    assert caught.value.retry_after == pytest.approx(19.0)
    clock.now += 19.0
    admit(allowed, "a", 20)


def test_a_prompt_larger_than_the_allowance_runs_from_a_full_bucket() -> None:
    allowed, clock = limits(None, 60)
    admit(allowed, "a", 1000)
    with pytest.raises(HeadraceError):
        admit(allowed, "a", 1)
    clock.now += 941.0
    admit(allowed, "a", 1)


def test_tenants_are_apart_and_the_unlimited_stay_so() -> None:
    allowed, _ = limits(1, None)
    admit(allowed, "a", 1)
    admit(allowed, "b", 1)
    for _ in range(100):
        admit(allowed, "c", 10_000).used(10_000)
    assert allowed.headers("c") == []


def test_headers_tell_limit_remaining_and_reset() -> None:
    allowed, _ = limits(60, 6000)
    admit(allowed, "a", 600)
    assert dict(allowed.headers("a")) == {
        b"x-ratelimit-limit-requests": b"60", b"x-ratelimit-remaining-requests": b"59", b"x-ratelimit-reset-requests": b"1s",
        b"x-ratelimit-limit-tokens": b"6000", b"x-ratelimit-remaining-tokens": b"5400", b"x-ratelimit-reset-tokens": b"6s",
    }  # fmt: skip


def test_a_large_body_is_refused_by_its_size_and_a_wrong_estimate_is_corrected() -> None:
    allowed, clock = limits(None, 600)
    claim = allowed.enter("a", 8000)  # about 500 tokens
    assert dict(allowed.headers("a"))[b"x-ratelimit-remaining-tokens"] == b"100"
    with pytest.raises(HeadraceError, match="600 tokens a minute; the prompt has about 500") as caught:
        allowed.enter("a", 8000)
    assert caught.value.retry_after == pytest.approx(40.0)
    claim.settle(20)
    assert dict(allowed.headers("a"))[b"x-ratelimit-remaining-tokens"] == b"580"
    allowed.enter("a", 8000).drop()
    assert dict(allowed.headers("a"))[b"x-ratelimit-remaining-tokens"] == b"580"
    clock.now += 2.0
    allowed.enter("a", 10**9).settle(10**6)  # larger than all there can be: runs from a full bucket
    clock.now += 1e9
    for _ in range(40):
        clock.now += 60.0
        allowed.enter("a", 8000).settle(5)  # this tenant's bodies hold few tokens: the estimate follows
    assert dict(allowed.headers("a"))[b"x-ratelimit-remaining-tokens"] == b"595"
    assert allowed.enter("a", 16_000)._estimate < 20


def test_a_refused_body_counts_as_a_request_and_not_as_tokens() -> None:
    allowed, _ = limits(10, 600)
    allowed.enter("a", 1600).drop()
    headers = dict(allowed.headers("a"))
    assert headers[b"x-ratelimit-remaining-requests"] == b"9"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"600"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (0.2501, "251ms"), (7.5, "7.5s"), (63, "1m3s"), (59.99, "1m0s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40), st.integers(0, 40)), max_size=60))
def test_no_minute_sees_more_than_the_burst_and_the_refill(calls: list[tuple[float, int, int]]) -> None:
    """Whatever the pattern: admitted prompts never exceed a full bucket plus what flowed in."""
    allowed, clock = limits(None, 60)
    admitted = used = 0
    for pause, prompt, output in calls:
        clock.now += pause
        try:
            claim = admit(allowed, "a", prompt)
        except HeadraceError:
            continue
        admitted += prompt
        assert admitted + used <= 60 + (clock.now - 1000.0) + 1e-6
        claim.used(output)
        used += output


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("free\nfew requests_per_minute=2\nshort tokens_per_minute=50\nflood requests_per_minute=1 name=flood\n")
    running = launch_server(0.001, key="free", api_key_file=str(path))
    yield running
    assert running.stop() == 0


def _client(server: Running, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=30.0)


@pytest.mark.server
def test_the_client_sees_its_limits_and_a_refusal_it_understands(limited: Running) -> None:
    with _client(limited, "few") as client, _client(limited, "free") as unlimited:
        few = client.completions.with_raw_response
        first = few.create(model="echo", prompt=[1, 2, 3], max_tokens=2)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] in ("30s", "29.9s", "29.8s")
        assert "x-ratelimit-limit-tokens" not in first.headers
        few.create(model="echo", prompt=[1, 2, 3], max_tokens=2)
        with pytest.raises(openai.RateLimitError) as refused:
            few.create(model="echo", prompt=[1, 2, 3], max_tokens=2)
        assert refused.value.code == "rate_limit_exceeded"
        assert 25 <= int(refused.value.response.headers["retry-after"]) <= 30
        assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        answer = unlimited.completions.with_raw_response.create(model="echo", prompt=[1], max_tokens=2)
        assert not any(name.startswith("x-ratelimit") for name in answer.headers)


@pytest.mark.server
def test_streamed_tokens_count(limited: Running) -> None:
    with _client(limited, "short") as short:
        with short.completions.create(model="echo", prompt="one two three", max_tokens=60, stream=True) as stream:
            assert sum(1 for _ in stream) > 1
        with pytest.raises(openai.RateLimitError, match="tokens a minute"):
            short.embeddings.create(model="echo", input=[[1, 2, 3]])


@pytest.mark.server
def test_a_flood_is_refused_before_its_bodies_are_read(limited: Running) -> None:
    headers = {"authorization": "Bearer flood"}
    with limited.http() as http:
        assert http.post("/v1/completions", content=b"not json", headers=headers).status_code == 400
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings"):
            answer = http.post(path, content=b"[" * 100_000, headers=headers)
            assert answer.status_code == 429, "what the body says was never looked at"
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert http.post("/v1/tokenize", json={"prompt": "a"}, headers=headers).status_code == 200
    assert limited.metric('headrace_tenant_limited_total{tenant="flood"}') == 3
