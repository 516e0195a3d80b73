"""Servers for the tests: real processes on free ports."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

HERE = Path(__file__).parent


@dataclass
class Running:
    """A server process and ways to talk to it."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""
    key: str | None = None
    reader: threading.Thread = field(default_factory=threading.Thread)
    scratch: str | None = None
    made: openai.OpenAI | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=30.0, trust_env=False, **options)

    def client(self) -> openai.OpenAI:
        """The one client of this server; its connections close with it."""
        if self.made is None:
            self.made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=30.0)
        return self.made

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        with self.http() as http:
            return http.post(path, json=body, **options)

    def get(self, path: str) -> httpx.Response:
        with self.http() as http:
            return http.get(path)

    def metric(self, name: str) -> float:
        """Value of a metric line, given with its labels."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        assert found, f"no metric {name}"
        return float(found[1])

    def eventually(self, check: Callable[[], bool], seconds: float = 10.0) -> None:
        until = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < until, "waited in vain"
            time.sleep(0.02)

    def hang_up(self, path: str, body: Any, times: int) -> None:
        """Post a body so many times, and drop the connection a little later each time."""
        data = json.dumps(body).encode()
        host, port = self.url.removeprefix("http://").split(":")
        head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        for number in range(times):
            with socket.create_connection((host, int(port)), timeout=20) as wire:
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close means reset
                wire.sendall(head.encode() + data)
                time.sleep(number * 1e-4)

    def limit_files(self, size: int) -> None:
        """From now on no file of this server grows beyond so many bytes: it is told so as by a full disk."""
        hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, hard))

    def engine_pid(self) -> int:
        """Process id of the engine, our server's only child that holds the wire."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            command = Path(f"/proc/{child}/cmdline").read_text()
            if "echo_engine" in command or "headrace.engine.process" in command:
                return int(child)
        raise AssertionError("no engine process")

    def stop(self) -> int:
        if self.made is not None:
            self.made.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)  # stopping twice is fine
        return self.process.returncode


def launch(command: list[str], key: str | None = None) -> Running:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    running = Running(process, key=key)

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            running.lines.append(line.rstrip())

    running.reader = threading.Thread(target=read, daemon=True)
    running.reader.start()
    until = time.monotonic() + 60
    while not running.url:
        found = [line for line in running.lines if "listening on" in line]
        if found:
            address = re.search(r"listening on (http://[\w.\[\]:]+)", found[0])
            running.url = address[1] if address is not None else ""
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            running.stop()
            raise AssertionError("\n".join(running.lines))
        time.sleep(0.02)
    return running


def wait_ready(running: Running) -> Running:
    running.eventually(lambda: running.get("/readyz").status_code == 200, 90)
    return running


def launch_raw(engine: str, options: dict[str, Any], model: str = "", key: str | None = None) -> Running:
    """A server that has just begun to listen; without ``state_dir`` it gets a fresh one that goes with it."""
    scratch = None if "state_dir" in options else tempfile.mkdtemp(prefix="headrace-state-")
    options = {"port": 0, "state_dir": scratch, **options}
    command = [sys.executable, str(HERE / "run_server.py"), engine, json.dumps(options), *([model] if model else [])]
    try:
        running = launch(command, key)
    except BaseException:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    running.scratch = scratch
    return running


def launch_server(engine: str | float = 0.005, key: str | None = None, **options: Any) -> Running:
    """A ready server over the real engine (``"real"``) or the echo engine (seconds a token)."""
    return wait_ready(launch_raw(str(engine), options, key=key))


@pytest.fixture(scope="session")
def echo() -> Iterator[Running]:
    """A server over the echo engine that nobody may break."""
    running = launch_server()
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


@pytest.fixture(scope="session")
def real() -> Iterator[Running]:
    """The server over the real engine and SmolLM2, started once; nobody may break it."""
    running = launch_server("real")
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with two keys over the echo engine: ``sk-guest``, which is used, and an operator's, ``sk-boss``."""
    path = tmp_path_factory.mktemp("guest") / "keys"
    path.write_text("sk-boss operator=1 name=boss\nsk-guest name=guest\n")
    running = launch_server(key="sk-guest", api_key_file=str(path))
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


@pytest.fixture
def own() -> Iterator[Callable[..., Running]]:
    """Makes servers that the test may break."""
    made: list[Running] = []

    def make(**options: Any) -> Running:
        made.append(launch_server(**options))
        return made[-1]

    yield make
    for running in made:
        running.stop()
