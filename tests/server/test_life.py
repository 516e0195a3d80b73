"""Requests and servers from birth to death: cancel, queue, deadline, keep-alive, drain, a dead engine."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import Running, launch_raw

pytestmark = pytest.mark.server
ENDLESS: dict[str, Any] = {"prompt": "one two three", "max_tokens": 2000}
MakeServer = Callable[..., Running]


def cancelled(running: Running) -> float:
    return running.metric('headrace_choices_finished_total{reason="cancelled"}')


def idle(running: Running) -> bool:
    return running.metric("headrace_requests_live") == 0 and running.metric("headrace_pages_free") == running.metric(
        "headrace_pages_total"
    )


def hang_up(running: Running, body: dict[str, Any], read: bytes = b"") -> None:
    """Send a request over a bare socket, wait for ``read``, and leave."""
    host, port = running.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
        sock.sendall(head.encode() + data)
        got = b""
        while read and read not in got:
            got += sock.recv(65536)
        if not read:
            time.sleep(0.2)


@pytest.mark.parametrize("stream", [True, False])
def test_hang_up_gives_pages_back(echo: Running, stream: bool) -> None:
    before = cancelled(echo)
    hang_up(echo, {**ENDLESS, "stream": stream, "n": 2}, b"data: " if stream else b"")
    echo.eventually(lambda: cancelled(echo) == before + 2)
    echo.eventually(lambda: idle(echo))


def test_storm_of_hang_ups_leaves_nothing(echo: Running) -> None:
    before = cancelled(echo)
    storm = [
        threading.Thread(target=hang_up, args=(echo, {**ENDLESS, "stream": number % 2 == 0}, b"data: " if number % 2 == 0 else b""))
        for number in range(40)
    ]
    for thread in storm:
        thread.start()
    for thread in storm:
        thread.join()
    echo.eventually(lambda: cancelled(echo) == before + 40, 20)
    echo.eventually(lambda: idle(echo))
    assert echo.post("/v1/completions", {"prompt": "a b", "max_tokens": 3}).status_code == 200


def test_a_stop_string_cancels_its_choice_only(echo: Running) -> None:
    answer = echo.post("/v1/completions", {"prompt": "one two three four", "max_tokens": 12, "n": 2, "stop": " threeone"}).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [
        "one two three fourone two three fourone two three four",
        " two three fourone two three fourone two three fourone",
    ]
    stopped = echo.post("/v1/completions", {"prompt": "one two three", "max_tokens": 500, "n": 2, "stop": ["eon", "zzz"]}).json()
    assert [choice["text"] for choice in stopped["choices"]] == ["one two thre", " two thre"]
    assert [choice["finish_reason"] for choice in stopped["choices"]] == ["stop", "stop"]
    echo.eventually(lambda: idle(echo))


def test_queue_limit_is_429_with_retry_after(own: MakeServer) -> None:
    running = own(max_queue=3)
    with running.http() as http, http.stream("POST", "/v1/completions", json={**ENDLESS, "n": 2, "stream": True}) as first:
        assert first.status_code == 200
        full = running.post("/v1/completions", {**ENDLESS, "n": 2})
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["code"] == "queue_full"
        with pytest.raises(openai.RateLimitError):
            running.client().completions.create(model="echo", prompt="x", n=2)
        assert running.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200
    running.eventually(lambda: idle(running))
    big = running.post("/v1/completions", {"prompt": "x", "max_tokens": 1, "n": 8})
    assert big.status_code == 200, "a call above the limit runs alone"


def test_deadlines(echo: Running) -> None:
    answer = echo.post("/v1/completions", {**ENDLESS, "deadline_ms": 60})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    with echo.http() as http:
        text = http.post("/v1/completions", json={**ENDLESS, "deadline_ms": 150, "stream": True}).text
    frames = text.split("\n\n")
    assert frames[-2] == "data: [DONE]"
    assert json.loads(frames[-3][6:])["error"]["code"] == "deadline_exceeded"
    assert echo.metric('headrace_choices_finished_total{reason="deadline"}') >= 2


def test_silence_is_filled_with_comments(own: MakeServer) -> None:
    running = own(engine=0.5, keepalive=0.1)
    with running.http() as http:
        text = http.post("/v1/completions", json={"prompt": "a b", "max_tokens": 2, "stream": True}).text
    assert text.count(": keep-alive\n\n") >= 3
    assert text.endswith("data: [DONE]\n\n")
    stream = running.client().completions.create(model="echo", prompt="a b", max_tokens=2, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "a b"


def test_a_client_that_reads_nothing_is_let_go(own: MakeServer) -> None:
    running = own(engine=0.0005, send_timeout=0.5)
    host, port = running.url.removeprefix("http://").split(":")
    body = json.dumps({**ENDLESS, "n": 16, "stream": True, "logprobs": 5}).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((host, int(port)))
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        running.eventually(lambda: cancelled(running) > 0, 20)
    running.eventually(lambda: idle(running))


def test_drain(own: MakeServer) -> None:
    running = own(engine=0.02)
    lines: list[str] = []

    def read() -> None:
        with (
            running.http() as http,
            http.stream("POST", "/v1/completions", json={**ENDLESS, "max_tokens": 80, "stream": True}) as answer,
        ):
            lines.extend(answer.iter_lines())

    reader = threading.Thread(target=read)
    reader.start()
    running.eventually(lambda: running.metric("headrace_requests_live") == 1)
    running.process.send_signal(signal.SIGTERM)
    running.eventually(lambda: running.get("/readyz").status_code == 503, 1.0)
    refused = running.post("/v1/completions", ENDLESS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["retry-after"]
    assert running.get("/livez").status_code == 200
    reader.join()
    assert lines[-2] == "data: [DONE]"
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert running.process.wait(10) == 0


def test_drain_has_a_limit(own: MakeServer) -> None:
    running = own(engine=0.05, drain=0.3)
    with running.http() as http, http.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        running.process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    assert any('"error"' in line for line in rest)
    assert running.process.wait(10) == 0


def test_a_second_signal_hurries(own: MakeServer) -> None:
    running = own(engine=0.05)
    with running.http() as http, http.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        running.process.send_signal(signal.SIGINT)
        running.eventually(lambda: running.get("/readyz").status_code == 503)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(10) == 0
        assert any('"error"' in line for line in lines)


@pytest.mark.parametrize("engine", [0.02, pytest.param("real", marks=pytest.mark.model)])
def test_death_of_the_engine(own: MakeServer, engine: Any) -> None:
    running = own(engine=engine)
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(running.post("/v1/completions", {**ENDLESS, "ignore_eos": True})))
    waiting.start()
    with (
        running.http() as http,
        http.stream("POST", "/v1/completions", json={**ENDLESS, "ignore_eos": True, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        running.eventually(lambda: running.metric("headrace_requests_live") == 2)
        os.kill(running.engine_pid(), signal.SIGKILL)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    error = json.loads(rest[-4][6:])["error"]
    assert error["code"] == "engine_dead"
    health = running.get("/health")
    assert (health.status_code, health.json()["error"]["code"]) == (503, "engine_dead")
    assert running.get("/livez").status_code == 200
    waiting.join()
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "engine_dead")
    assert running.process.wait(10) not in (0, None)


def test_an_engine_that_cannot_start(tmp_path: Path) -> None:
    running = launch_raw("real", {}, str(tmp_path / "none.gguf"))
    assert running.process.wait(60) == 1
    running.stop()
    assert any("can't start" in line or "no model" in line for line in running.lines)


def test_probes_while_loading() -> None:
    running = launch_raw("0.01", {})
    answer = running.get("/readyz")
    assert answer.status_code in (200, 503)
    if answer.status_code == 503:
        assert answer.json()["error"]["code"] == "loading"
        assert answer.headers["retry-after"]
    assert running.get("/livez").status_code == 200
    assert running.stop() == 0
