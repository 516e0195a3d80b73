"""What the console and ``headrace top`` read."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from headrace.engine.wire import Gauges
from headrace.server.protocol.common import Body

_Switch = Annotated[int, Meta(ge=0, le=1)]


class ConsoleQuery(Body, frozen=True, kw_only=True):
    """What is wanted. ``since``: the ``cursor`` of the last answer; ``steps`` and ``latencies``: 1 with, 0 (or nothing) without."""

    since: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    steps: _Switch | None = None
    latencies: _Switch | None = None
    requests: Annotated[int, Meta(ge=0, le=500)] | None = None


class ModelNow(msgspec.Struct, frozen=True):
    """One model and its engine's counters. ``page_tokens`` is 0 while it is not in memory."""

    name: str
    state: str
    requests: int
    waiting: int
    memory_bytes: int
    context_length: int | None
    page_tokens: int
    gauges: Gauges


class StepNow(msgspec.Struct, frozen=True):
    """One step. ``at``: its beginning, seconds since 1970; ``ms``: all of it, ``model_ms`` the model's part; ``rows`` by kind."""

    number: int
    model: str
    at: float
    ms: float
    model_ms: float
    predicted_ms: float
    rows: dict[str, int]
    sequences: int
    waiting: int


class WindowNow(msgspec.Struct, frozen=True):
    """Latencies of 10 seconds as counts by bucket. ``at``: its beginning, seconds since 1970."""

    at: float
    first: dict[int, int]
    gap: dict[int, int]


class Latencies(msgspec.Struct, frozen=True):
    """Bucket *b* reaches from ``least_seconds · 10^(b / per_decade)`` to the same of *b* + 1."""

    least_seconds: float
    per_decade: int
    window_seconds: float
    windows: list[WindowNow]


class RequestNow(msgspec.Struct, frozen=True):
    """The life of one request: times in seconds after ``began`` (seconds since 1970). No text of it is kept.

    ``chunks``: (begin, seconds, rows) of each piece of the prompt, ``setbacks``: when its pages went; while a console watched.
    """

    id: str
    model: str
    name: str
    tenant: str
    began: float
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    choices: int
    max_tokens: int
    queued: float | None
    first: float | None
    last: float | None
    ended: float | None
    longest_gap: float
    finish: list[str]
    chunks: list[tuple[float, float, int]]
    setbacks: list[float]


class ConsoleData(msgspec.Struct, frozen=True):
    """State of the server. ``cursor``: what to send as ``since`` to get the steps after these. ``own_only``: other keys' requests
    are left out."""

    now: float
    started: float
    version: str
    draining: bool
    loop_lag_seconds: float
    own_only: bool
    models: list[ModelNow]
    cursor: int
    steps: list[StepNow]
    latencies: Latencies | None
    requests: list[RequestNow]


class FindingNow(msgspec.Struct, frozen=True):
    """One finding of the doctor. ``bad``: nothing runs, or answers are lost; ``note``: it could be better."""

    state: str
    what: str
    found: str
    advice: str = ""


class Findings(msgspec.Struct, frozen=True):
    """``server``: what the running server shows; ``machine``: what `headrace doctor` says."""

    server: list[FindingNow]
    machine: list[FindingNow]
