"""Faults from outside, and after each the same questions: is it healthy, has a neighbour's bit changed, is anything left over?"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Running, launch_raw, launch_server

pytestmark = [pytest.mark.server, pytest.mark.model]
NEIGHBOUR = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "logprobs": 1}
LONG = {"prompt": "one two three", "max_tokens": 1500, "ignore_eos": True, "stream": True, "speculation": "off"}


@pytest.fixture(scope="module")
def target() -> Iterator[Running]:
    """One real server that has to come through all faults."""
    running = launch_server("real")
    running.post("/v1/completions", NEIGHBOUR)
    yield running
    assert running.stop() == 0, "\n".join(running.lines)
    traces = sum("Traceback" in line for line in running.lines)
    # The event loop tells with a trace of each connection that it may not take.
    assert traces == sum("socket.accept() out of system resource" in line for line in running.lines), "\n".join(running.lines)


def wire(running: Running) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def request(body: dict[str, Any], length: int | None = None) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data) if length is None else length}\r\n\r\n"
    return head.encode() + data


def frozen_engine(running: Running) -> None:
    """The engine stands still in the middle of a stream and goes on."""
    with wire(running) as sock:
        sock.sendall(request(LONG))
        sock.recv(100)
        engine = running.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        try:
            assert running.get("/livez").status_code == 200
            assert running.get("/metrics").status_code == 200
            refused = running.post("/v1/completions", {"prompt": "a", "n": -1})
            assert refused.status_code == 400, "what needs no engine is answered without one"
        finally:
            os.kill(engine, signal.SIGCONT)
        sock.recv(100)


def frozen_server(running: Running) -> None:
    """The HTTP process stands still while its engine goes on and its socket fills."""
    with wire(running) as sock:
        sock.sendall(request({**LONG, "n": 8}))
        sock.recv(100)
        os.kill(running.process.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(running.process.pid, signal.SIGCONT)
        sock.recv(100)


def no_more_files(running: Running) -> None:
    """The server may open nothing more while clients come; those who were there go on, and new ones are served afterwards."""
    pid = running.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with wire(running) as there, contextlib.ExitStack() as waiting:
        there.sendall(request(LONG))
        there.recv(100)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 3, before[1]))
        try:
            for _ in range(30):
                waiting.enter_context(wire(running)).sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
            for _ in range(20):
                assert there.recv(10), "a stream that was there goes on"
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def full_disk(running: Running) -> None:
    """No file may grow: what would be kept is refused, what is computed is not."""
    running.limit_files(0)
    try:
        lost = running.client().with_options(timeout=20).files
        with pytest.raises(Exception, match=r"507|disk|storage"):
            lost.create(file=("a", b"x" * 5000), purpose="batch")
        assert running.post("/v1/completions", {**NEIGHBOUR, "max_tokens": 2}).status_code == 200
    finally:
        running.limit_files(resource.RLIM_INFINITY)


def thousand_connections(running: Running) -> None:
    """A thousand clients connect; half say nothing, half ask for a probe and read nothing."""
    with contextlib.ExitStack() as held:
        for number in range(1000):
            sock = held.enter_context(wire(running))
            if number % 2:
                sock.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert running.post("/v1/completions", {**NEIGHBOUR, "max_tokens": 2}).status_code == 200


def slow_readers(running: Running) -> None:
    """Streams with small windows that nobody reads for long."""
    with contextlib.ExitStack() as held:
        for _ in range(10):
            sock = held.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = running.url.removeprefix("http://").split(":")
            sock.connect((host, int(port)))
            sock.sendall(request({**LONG, "logprobs": 5}))
        running.eventually(lambda: running.metric("headrace_requests_live") >= 10, 30)


def slow_senders(running: Running) -> None:
    """Heads and bodies that come byte by byte, and never to an end."""
    with contextlib.ExitStack() as held:
        socks = [held.enter_context(wire(running)) for _ in range(100)]
        for number, sock in enumerate(socks):
            sock.sendall(request(NEIGHBOUR, length=1000)[: 40 if number % 2 else None])
        for _ in range(5):
            for sock in socks:
                sock.sendall(b"x")


def storm(running: Running) -> None:
    """A hundred clients hang up, each a little later in its request."""
    running.hang_up("/v1/completions", LONG, 60)
    running.hang_up("/v1/completions", {**NEIGHBOUR, "n": 4}, 40)


def odd_signals(running: Running) -> None:
    """A signal that nobody expects (a terminal that changes its size) and one that reaps children."""
    for number in (signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG, signal.SIGCONT):
        os.kill(running.process.pid, number)
        os.kill(running.engine_pid(), number)


def jumping_clock(running: Running) -> None:
    """An hour forward and a day back, in the middle of a batch, which ends as if nothing had been."""
    alone = running.post("/v1/completions", NEIGHBOUR).json()["choices"]
    client, line = running.client(), {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": NEIGHBOUR}
    file = client.files.create(file=("a", json.dumps(line).encode()), purpose="batch").id
    batch = client.batches.create(input_file_id=file, endpoint="/v1/completions", completion_window="24h").id
    for jump in (signal.SIGUSR1, signal.SIGUSR2):
        running.process.send_signal(jump)
    running.eventually(lambda: client.batches.retrieve(batch).status not in ("validating", "in_progress", "finalizing"), 60)
    whole = client.batches.retrieve(batch)
    assert whole.status == "completed", whole
    assert whole.output_file_id is not None
    assert json.loads(client.files.content(whole.output_file_id).text)["response"]["body"]["choices"] == alone
    assert file in [one.id for one in client.files.list()]
    assert sum("the clock jumps" in line for line in running.lines) == 2


FAULTS: tuple[Callable[[Running], None], ...] = (
    frozen_engine, frozen_server, no_more_files, full_disk, thousand_connections, slow_readers, slow_senders, storm,
    odd_signals, jumping_clock,
)  # fmt: skip


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture(scope="module", autouse=True)
def room_for_connections() -> Iterator[None]:
    """This process holds the clients' ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192) if hard != resource.RLIM_INFINITY else 8192, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_fault(target: Running, fault: Callable[[Running], None]) -> None:
    alone = target.post("/v1/completions", NEIGHBOUR).json()["choices"]
    engine, held = target.engine_pid(), (open_files(target.process.pid), open_files(target.engine_pid()))
    got: list[Any] = []
    over = threading.Event()

    def neighbour() -> None:
        with target.http() as http:
            while not over.is_set() or not got:
                got.append(http.post("/v1/completions", json=NEIGHBOUR, timeout=120).json()["choices"])

    beside = threading.Thread(target=neighbour)
    beside.start()
    try:
        fault(target)
    finally:
        over.set()
        beside.join()
    assert all(choices == alone for choices in got), "the neighbour's answer is the one that it gets alone"
    target.eventually(lambda: target.metric("headrace_requests_live") == 0, 60)
    # At rest the engine has looked through its books; it would have ended if they were wrong.
    target.eventually(lambda: target.metric("headrace_pages_free") == target.metric("headrace_pages_total"), 60)
    target.eventually(lambda: open_files(target.process.pid) <= held[0] + 2, 60)
    assert open_files(engine) <= held[1] + 2
    assert target.engine_pid() == engine
    assert target.get("/readyz").status_code == 200
    assert target.post("/v1/completions", NEIGHBOUR).json()["choices"] == alone


def ended_by_kill(running: Running) -> None:
    """A server whose only engine was killed tells so and ends."""
    os.kill(running.engine_pid(), signal.SIGKILL)
    assert running.process.wait(30) not in (0, None)
    assert not [line for line in running.lines if "Traceback" in line], "\n".join(running.lines)


def test_an_engine_killed_while_it_loads() -> None:
    running = launch_raw("real", {})
    try:
        running.eventually(lambda: bool(engine_of(running)), 30)
        ended_by_kill(running)
    finally:
        running.stop()


@pytest.mark.parametrize(("moment", "engine"), [("prompt", "real"), ("drain", 0.02)])
def test_an_engine_killed_in_a_prompt_and_in_a_drain(moment: str, engine: str | float) -> None:
    running = launch_server(engine)
    try:
        with wire(running) as sock:
            sock.sendall(request({**LONG, "prompt": "word and another " * 1200} if moment == "prompt" else LONG))
            running.eventually(lambda: running.metric("headrace_requests_live") == 1)
            if moment == "drain":
                sock.recv(100)
                running.process.send_signal(signal.SIGTERM)
                running.eventually(lambda: running.get("/readyz").status_code == 503)
            os.kill(running.engine_pid(), signal.SIGKILL)
            rest = b""
            while piece := sock.recv(65536):
                rest += piece
        assert b"engine_dead" in rest, rest[-300:]
        running.process.wait(30)
        assert not [line for line in running.lines if "Traceback" in line], "\n".join(running.lines)
    finally:
        running.stop()


def engine_of(running: Running) -> int | None:
    try:
        return running.engine_pid()
    except AssertionError:
        return None


def test_an_engine_that_gets_no_more_memory_answers_or_says_why() -> None:
    """From some moment on no process memory can be had; nobody gets a wrong token for it."""
    running = launch_server("real")
    try:
        alone = running.post("/v1/completions", NEIGHBOUR).json()["choices"]
        engine = running.engine_pid()
        size = int(Path(f"/proc/{engine}/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.prlimit(engine, resource.RLIMIT_AS)
        resource.prlimit(engine, resource.RLIMIT_AS, (size, before[1]))
        bodies = [NEIGHBOUR, {**NEIGHBOUR, "prompt": "word and another " * 1500, "max_tokens": 4}, {**NEIGHBOUR, "n": 8}]
        for body in bodies:
            try:
                answer = running.post("/v1/completions", body)
            except httpx.HTTPError:
                break
            if body is NEIGHBOUR and answer.status_code == 200:
                assert answer.json()["choices"] == alone
            assert answer.status_code == 200 or "error" in answer.json()
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(engine, resource.RLIMIT_AS, before)
        if running.process.poll() is None and running.get("/readyz").status_code == 200:
            assert running.post("/v1/completions", NEIGHBOUR).json()["choices"] == alone
            assert running.stop() == 0
    finally:
        running.stop()
