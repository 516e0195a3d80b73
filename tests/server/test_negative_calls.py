"""Wrong calls made from the API's own description, for every route and method: no bug, one envelope, and a neighbour unharmed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import Running, launch_server
from fuzzing import TIMES
from negative_calls import NegativeCalls, Sent, problem_of

from headrace.server import routes
from headrace.server.console import doctor
from headrace.server.openapi import openapi

pytestmark = [pytest.mark.server, pytest.mark.model]
SEEDS = 2 * TIMES  # about 160 calls each
NEIGHBOUR = {"prompt": "Once upon a time", "max_tokens": 30, "temperature": 0, "ignore_eos": True, "logprobs": 1}


@pytest.fixture(scope="module")
def attacked() -> Iterator[Running]:
    running = launch_server("real")
    yield running
    assert running.stop() == 0, "\n".join(running.lines)
    assert not [line for line in running.lines if "Traceback" in line or "failed" in line], "\n".join(running.lines)


def known(running: Running) -> dict[str, list[str]]:
    """Ids and names that exist, so that calls come further than to a refusal of those."""
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "max_tokens": 2}}
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    files = running.client().files
    lines = files.create(file=("a", json.dumps(line).encode()), purpose="batch").id
    talks = files.create(file=("b", json.dumps(talk).encode()), purpose="fine-tune").id
    response = running.post("/v1/responses", {"input": "hi", "max_output_tokens": 2}).json()["id"]
    batch = running.post("/v1/batches", {"input_file_id": lines, "endpoint": "/v1/completions", "completion_window": "24h"}).json()[
        "id"
    ]
    few: Any = {name: [1, 2, 3] for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")}
    return {
        "model": ["smollm2"], "input_file_id": [lines], "training_file": [talks], "previous_response_id": [response],
        "files": [lines, talks], "responses": [response], "batches": [batch], **few,
    }  # fmt: skip


def send_all(running: Running, calls: list[Sent]) -> list[str]:
    """Send calls, sixteen at a time; what was wrong with their answers."""

    async def one(http: httpx.AsyncClient, turn: asyncio.Semaphore, sent: Sent) -> str | None:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in sent.headers.items()]
        async with turn:
            try:
                answer = await http.request(sent.method, sent.path, content=sent.body, headers=headers)
            except httpx.HTTPError as error:
                return f"no answer ({error!r}) to {sent}"
        problem = problem_of(sent, answer.status_code, answer.content)
        return None if problem is None else f"{problem}, to {sent}"

    async def all_of_them() -> list[str | None]:
        turn = asyncio.Semaphore(16)
        async with httpx.AsyncClient(base_url=running.url, timeout=60, trust_env=False) as http:
            return await asyncio.gather(*(one(http, turn, sent) for sent in calls))

    return [problem for problem in asyncio.run(all_of_them()) if problem is not None]


def test_no_wrong_call_finds_a_bug(attacked: Running) -> None:
    description, ids = attacked.get("/openapi.json").json(), known(attacked)
    alone = attacked.post("/v1/completions", NEIGHBOUR).json()["choices"]
    got: list[Any] = []
    over = threading.Event()

    def neighbour() -> None:
        while not over.is_set():
            got.append(attacked.post("/v1/completions", NEIGHBOUR).json()["choices"])

    beside = threading.Thread(target=neighbour)
    beside.start()
    try:
        problems = send_all(attacked, [sent for seed in range(SEEDS) for sent in NegativeCalls(description, seed, ids).each()])
    finally:
        over.set()
        beside.join()
    assert problems == []
    assert got
    assert all(choices == alone for choices in got), "the neighbour's answer is the one that it gets alone"


def test_slow_work_is_done_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Describing the API and starting the doctor took 40 ms each, for which all streams stood still."""
    threads: list[threading.Thread] = []
    make, start = openapi, subprocess.Popen

    def described(endpoints: Any) -> Any:
        threads.append(threading.current_thread())
        return make(endpoints)

    def started(command: list[str], **options: Any) -> Any:
        threads.append(threading.current_thread())
        return start([command[0], "-c", "print('[]')"], **options)

    monkeypatch.setattr(routes, "openapi", described)
    monkeypatch.setattr(subprocess, "Popen", started)
    routes._description.cache_clear()
    unused: Any = None
    asyncio.run(routes.describe(unused, unused))
    asyncio.run(routes.describe(unused, unused))
    asyncio.run(doctor._examine())
    assert len(threads) == 2, "the description is written once"
    assert threading.main_thread() not in threads
