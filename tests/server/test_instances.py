"""A server with two instances: the same answers over HTTP, also when one of them is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import Running, launch_server

pytestmark = [pytest.mark.server, pytest.mark.model]
BODY = {"prompt": "The mill by the river", "max_tokens": 60, "temperature": 0.8, "seed": 4, "ignore_eos": True}


def instances(running: Running) -> list[dict[str, object]]:
    found = running.get("/v1/models").json()["data"][0]["instances"]
    assert isinstance(found, list)
    return found


def text(running: Running, *, kill: bool = False) -> str:
    """A streamed answer; with ``kill`` the instance that makes it ends after its first piece."""
    pieces, killed = [], False
    model = str(running.get("/v1/models").json()["data"][0]["id"])
    with running.http() as http, http.stream("POST", "/v1/completions", json={**BODY, "model": model, "stream": True}) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            pieces.append(json.loads(line[6:])["choices"][0]["text"])
            if kill and not killed and len(pieces) == 5:
                killed = True
                busy = next(one for one in instances(running) if one["requests"])
                os.kill(int(str(busy["pid"])), signal.SIGKILL)
    assert killed == kill
    return "".join(pieces)


def test_two_instances_are_one_server() -> None:
    running = launch_server("real", instances=["2"])
    try:
        assert list(running.get("/health").json()["instances"].values()) == ["2 of 2"]
        whole = text(running)
        assert text(running, kill=True) == whole
        assert text(running) == whole
        model = str(running.get("/v1/models").json()["data"][0]["id"])
        running.eventually(lambda: list(running.get("/health").json()["instances"].values()) == ["2 of 2"], 30)
        assert running.metric(f'headrace_replays_total{{model="{model}"}}') == 1
        assert running.metric(f'headrace_stray_outputs_total{{model="{model}"}}') == 0
        crashes = sum(running.metric(f'headrace_instance_crashes_total{{instance="{i}",model="{model}"}}') for i in (0, 1))
        assert crashes == 1
        listed = subprocess.run(
            [sys.executable, "-m", "headrace", "ps", "--url", running.url], capture_output=True, text=True, timeout=30, check=True
        ).stdout
        assert "instance 0" in listed
        assert "1 crashes" in listed
        assert running.metric('headrace_process_memory_bytes{process="engine"}') > 0
    finally:
        assert running.stop() == 0, "\n".join(running.lines)


def test_an_instance_for_prompts_hands_its_requests_over() -> None:
    running = launch_server("real", instances=["prefill", "decode"])
    try:
        assert [one["role"] for one in instances(running)] == ["prefill", "decode"]
        whole = text(running)
        model = str(running.get("/v1/models").json()["data"][0]["id"])
        assert running.metric(f'headrace_handoffs_total{{model="{model}"}}') == 1
        assert "prefill" in command(running, "list")
        changed = command(running, "role", "0=decode", "1=prefill")
        assert changed.index("decode") < changed.index("prefill")
        assert text(running) == whole
        assert "drained" in command(running, "drain", "1")
        assert text(running) == whole
        assert running.post("/v1/instances/drain", {"instance": 0}).json()["error"]["code"] == "state_conflict"
        assert running.post("/v1/instances/roles", {"roles": {"0": "prefill"}}).json()["error"]["param"] == "instances"
        assert running.post("/v1/instances/roles", {"roles": {"x": "prefill"}}).status_code == 400
        assert "serving" in command(running, "undrain", "1")
        assert [one["state"] for one in instances(running)] == ["serving", "serving"]
    finally:
        assert running.stop() == 0, "\n".join(running.lines)


def command(running: Running, *words: str) -> str:
    """What ``headrace instances`` prints."""
    line = [sys.executable, "-m", "headrace", "instances", *words, "--url", running.url]
    return subprocess.run(line, capture_output=True, text=True, timeout=90, check=True).stdout


def test_one_engine_is_not_divided(real: Running) -> None:
    refused = real.get("/v1/instances")
    assert refused.status_code == 409
    assert "--instances" in refused.json()["error"]["message"]


def test_only_operators_change_instances(guest: Running) -> None:
    assert guest.get("/v1/instances").status_code == 403
    assert guest.post("/v1/instances/drain", {"instance": 0}).status_code == 403


def test_more_instances_than_memory_holds_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"16 instances need .* choose fewer"):
        launch_server("real", instances=["16"], memory_mib=1000)
