"""What the HTTP side costs: the same streams from an engine in this process and from a server, in turns."""

from __future__ import annotations

import asyncio
import random
import re
import selectors
import socket
import statistics
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from headrace.evaluation.contestants import free_port, running, serve_command
from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings
from headrace.evaluation.live_runs import LiveRun, Planned
from headrace.evaluation.statistics import percentile
from headrace.evaluation.streaming_client import Stream, parse_url, stream
from headrace.evaluation.trials import Bench

_TOKEN = b'"finish_reason":null'
_LAG = re.compile(r"^headrace_event_loop_blocked_seconds (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Scale:
    streams: int
    prompt: int
    output: int
    rounds: int
    alone: int


_QUICK = _Scale(64, 64, 48, 2, 8)
_FULL = _Scale(64, 128, 128, 5, 24)


@dataclass(frozen=True, slots=True)
class _Round:
    """Tokens a second from the first request to the last token, and the 99th percentile of the gaps in seconds."""

    rate: float
    gap: float


def run(conditions: Conditions) -> Findings:
    """Many streams at once, and one request after the other, both ways in turns."""
    scale = _QUICK if conditions.quick else _FULL
    rng = random.Random(conditions.seed)
    port = free_port()
    command = serve_command(port, [conditions.model], conditions.threads, "--speculation", "off", "--prefix-reuse", "off")
    url = f"http://127.0.0.1:{port}"
    inside: list[_Round] = []
    outside: list[_Round] = []
    lags: list[float] = []
    with Bench(conditions) as bench, running("headrace", command, url):
        prompts = [[bench.prompt(scale.prompt, rng) for _ in range(scale.streams)] for _ in range(scale.rounds + 1)]
        for number, batch in enumerate(prompts):
            conditions.report(f"{scale.streams} streams at once", number, scale.rounds + 2)
            inside.append(_inside(bench, batch, scale.output))
            outside.append(_outside(port, batch, scale.output))
            lags.append(_blocked(url))
        conditions.report("one request after the other", scale.rounds + 1, scale.rounds + 2)
        waits = [_first_tokens(bench, url, bench.prompt(scale.prompt, rng)) for _ in range(scale.alone)][1:]
    return Findings(_claims(scale, inside[1:], outside[1:], lags, waits))


def _claims(
    scale: _Scale, inside: Sequence[_Round], outside: Sequence[_Round], lags: Sequence[float], waits: Sequence[tuple[float, float]]
) -> tuple[Claim, ...]:
    pairs = list(zip(inside, outside, strict=True))
    ratio = statistics.median(there.rate / here.rate for here, there in pairs)
    added = 1000 * statistics.median(there.gap - here.gap for here, there in pairs)
    first = 1000 * statistics.median(there - here for here, there in waits)
    rates = _both([one.rate for one in outside], [one.rate for one in inside], "tokens/s")
    gaps = _both([1000 * one.gap for one in outside], [1000 * one.gap for one in inside], "ms")
    note = _both([1000 * there for _, there in waits], [1000 * here for here, _ in waits], "ms")
    return (
        Claim("rate", f"tokens/s of {scale.streams} streams, over HTTP / in process", ">=", 0.95, ratio, "x", rates),
        Claim("gap", "p99 of the gap between tokens, longer over HTTP by", "<=", 3.0, added, "ms", gaps),
        Claim("first", "time to the first token of one request, longer over HTTP by", "<=", 5.0, first, "ms", note),
        Claim("loop", "longest that the event loop was held", "<=", 50.0, 1000 * max(lags), "ms"),
    )


def _both(outside: Sequence[float], inside: Sequence[float], unit: str) -> str:
    """The two medians in words."""
    return f"{statistics.median(outside):.1f} and {statistics.median(inside):.1f} {unit}"


def _inside(bench: Bench, prompts: Sequence[list[int]], output: int) -> _Round:
    with LiveRun(bench.engine()) as live:
        live.schedule([Planned(prompt, output) for prompt in prompts])
        window = live.run()
        gaps = sorted(gap for timing in live.timings for gap in timing.gaps())
    return _Round(len(prompts) * output / window.seconds, percentile(gaps, 99))


def _outside(port: int, prompts: Sequence[list[int]], output: int) -> _Round:
    """All at once. The client only counts events as they come: reading JSON would take as much of the cores as the server does."""
    began = time.perf_counter()
    times: dict[socket.socket, list[float]] = {}
    with selectors.DefaultSelector() as waiting:
        for prompt in prompts:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(_request(prompt, output))
            waiting.register(connection, selectors.EVENT_READ)
            times[connection] = []
        while waiting.get_map():
            for key, _ in waiting.select():
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                data = ready.recv(1 << 16)
                if not data:
                    waiting.unregister(ready)
                    ready.close()
                times[ready] += [time.perf_counter()] * data.count(_TOKEN)
    counts = {len(one) for one in times.values()}
    assert max(counts) <= output, f"more events than tokens: {counts}"
    ended = max(one[-1] for one in times.values())
    gaps = sorted(after - before for one in times.values() for before, after in pairwise(one))
    return _Round(len(prompts) * output / (ended - began), percentile(gaps, 99))


def _request(prompt: list[int], output: int) -> bytes:
    body = msgspec.json.encode(_body(prompt, output))
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _body(prompt: list[int], output: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": output, "temperature": 0, "ignore_eos": True, "stream": True}


async def _ask(url: str, prompt: list[int], output: int) -> Stream:
    return await stream(parse_url(url), "/v1/completions", _body(prompt, output))


def _first_tokens(bench: Bench, url: str, prompt: list[int]) -> tuple[float, float]:
    """Seconds to the first token in process and over HTTP."""
    with LiveRun(bench.engine()) as live:
        live.schedule([Planned(prompt, 2)])
        live.run()
        here = live.timings[0].first
    there = asyncio.run(_ask(url, prompt, 2))
    return here, there.times[0] - there.started


def _blocked(url: str) -> float:
    """Seconds that the server's event loop was held at worst, of the last seconds."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        found = _LAG.search(answer.read().decode())
    assert found is not None, "the server tells of its event loop"
    return float(found[1])


EXPERIMENT = Experiment(
    name="http",
    title="A stream over HTTP gets its tokens as fast as the engine makes them.",
    source="the engine in this process, without a server",
    minutes=4,
    run=run,
)
