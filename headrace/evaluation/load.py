"""The load generator: open loop (requests come when they come) or closed loop (so many clients), against any server."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from headrace.errors import HeadraceError
from headrace.evaluation.statistics import Promise
from headrace.evaluation.streaming_client import Endpoint, RequestFailedError, Stream, fetch_json, parse_url, stream
from headrace.evaluation.workload import Request, Shape, arrival_times, parse_lengths, passage, requests
from headrace.settings.declaration import option, validate

_CALIBRATION_WORDS = 200
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """A load. Give ``rate`` for an open loop or ``concurrency`` for a closed one."""

    url: str = option("http://127.0.0.1:8080", help="Base URL of an OpenAI-compatible server.")
    model: str | None = option(None, help="Model to ask for; none: the first that the server lists.")
    api_key_file: str | None = option(None, help="File whose first line is the API key to send.")
    endpoint: str = option("chat", choices=("chat", "completions"), help="Which endpoint to load.")
    requests: int = option(100, unit="requests", minimum=1, maximum=1_000_000, help="How many requests to send.")
    rate: float | None = option(None, unit="requests/s", minimum=0.001, maximum=100_000.0, help="Open loop: mean arrival rate.")
    arrival_shape: float = option(
        1.0, minimum=0.01, maximum=1000.0, help="Gamma shape of the gaps: 1 is Poisson, below 1 comes in bursts."
    )
    concurrency: int | None = option(None, unit="clients", minimum=1, maximum=10_000, help="Closed loop: clients that never pause.")
    prompt: str = option(
        "normal:128:0.3", unit="tokens", help="Prompt lengths: N, normal:MEAN:SHARE, lognormal:MEDIAN:SIGMA, uniform:LOW:HIGH."
    )
    output: str = option("normal:64:0.3", unit="tokens", help="Output limits, written in the same way.")
    prefixes: int = option(1, minimum=1, maximum=10_000, help="How many different prefixes the requests share.")
    prefix_tokens: int = option(0, unit="tokens", minimum=0, maximum=1_000_000, help="Length of a shared prefix; 0: none.")
    ignore_eos: bool = option(False, help="Ask for outputs of exactly the drawn length (not every server knows this field).")
    temperature: float = option(0.0, minimum=0.0, maximum=2.0, help="Sampling temperature.")
    prompt_rate: float = option(512.0, unit="tokens/s", minimum=0.1, help="Promise: first token within prompt tokens / this.")
    stream_rate: float = option(4.0, unit="tokens/s", minimum=0.01, help="Promise: smoothed gap never above 1 / this.")
    timeout: float = option(600.0, unit="s", minimum=0.1, maximum=86_400.0, help="Give a request up after this.")
    seed: int = option(0, minimum=0, maximum=2**63 - 1, help="Seed of texts, lengths and arrivals.")

    def __post_init__(self) -> None:
        validate(self)
        if self.rate is not None and self.concurrency is not None:
            raise HeadraceError("invalid_setting", "give rate (open loop) or concurrency (closed loop), not both", param="rate")
        parse_lengths(self.prompt, "prompt")
        parse_lengths(self.output, "output")

    @property
    def promise(self) -> Promise:
        """The service promised to each client."""
        return Promise(self.prompt_rate, self.stream_rate)

    @property
    def clients(self) -> int:
        """Clients of the closed loop; 8 when neither loop was asked for."""
        return self.concurrency or 8


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one request. Seconds count from the load's start; ``failure`` is empty when it ended well.

    ``late``: how long after its planned time the client managed to send it: a busy client, not the server.
    """

    index: int
    sent: float
    late: float
    prompt_tokens: int
    output_tokens: int
    first: float
    gaps: tuple[float, ...]
    total: float
    failure: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Everything that was measured; ``seconds`` from the first request sent to the last one ended."""

    settings: LoadSettings
    model: str
    records: tuple[Record, ...]
    seconds: float


Progress = Callable[[Record], None]


class LoadRun:
    """One run of a load against one server."""

    def __init__(self, settings: LoadSettings, progress: Progress | None = None) -> None:
        self._settings = settings
        self._progress = progress
        self._endpoint = parse_url(settings.url, _read_key(settings.api_key_file))
        self._model = settings.model or ""
        self._records: list[Record] = []
        self._zero = 0.0

    async def run(self) -> LoadResult:
        """Ask for the model, learn how many tokens a word has there, then send the load.

        Raises ``invalid_setting`` when the server can't be reached or refuses the first request.
        """
        settings = self._settings
        try:
            self._model = self._model or await first_model(self._endpoint)
            ratio = await self._tokens_per_word()
        except RequestFailedError as error:
            raise HeadraceError("invalid_setting", f"{settings.url} does not serve this load: {error}", param="url") from None
        lengths = parse_lengths(settings.prompt, "prompt"), parse_lengths(settings.output, "output")
        shape = Shape(*lengths, settings.prefixes, settings.prefix_tokens, ratio)
        planned = requests(shape, settings.requests, settings.seed)
        self._zero = time.perf_counter()
        if settings.rate is not None:
            await self._open_loop(list(planned), settings.rate)
        else:
            await self._closed_loop(list(planned))
        seconds = max(record.sent + record.total for record in self._records)
        return LoadResult(
            replace(settings, model=self._model), self._model, tuple(sorted(self._records, key=lambda r: r.index)), seconds
        )

    async def _open_loop(self, planned: list[Request], rate: float) -> None:
        times = arrival_times(rate, self._settings.arrival_shape, random.Random(self._settings.seed + 1))
        async with asyncio.TaskGroup() as group:
            for request, due in zip(planned, times, strict=False):
                await asyncio.sleep(max(0.0, self._zero + due - time.perf_counter()))
                group.create_task(self._send(request, due))

    async def _closed_loop(self, planned: list[Request]) -> None:
        waiting = iter(planned)

        async def client() -> None:
            for request in waiting:
                await self._send(request, None)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._settings.clients, len(planned))):
                group.create_task(client())

    async def _send(self, request: Request, due: float | None) -> None:
        began = time.perf_counter()
        result = Stream(began)
        failure = detail = ""
        try:
            async with asyncio.timeout(self._settings.timeout):
                await stream(
                    self._endpoint, _PATHS[self._settings.endpoint], self._body(request.prompt, request.output_tokens), result
                )
            if not result.times:
                failure = "no text"
        except TimeoutError:
            failure = "timeout"
        except RequestFailedError as error:
            failure, detail = error.kind, str(error)
        now = time.perf_counter()
        usage = result.usage
        record = Record(
            index=request.index,
            sent=began - self._zero,
            late=max(0.0, began - self._zero - due) if due is not None else 0.0,
            prompt_tokens=usage.prompt_tokens if usage else request.prompt_tokens,
            output_tokens=usage.completion_tokens if usage else len(result.times),
            first=result.times[0] - began if result.times else 0.0,
            gaps=tuple(b - a for a, b in zip(result.times, result.times[1:], strict=False)),
            total=now - began,
            failure=failure,
            detail=detail,
        )
        self._records.append(record)
        if self._progress is not None:
            self._progress(record)

    def _body(self, prompt: str, output_tokens: int) -> dict[str, Any]:
        settings = self._settings
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": output_tokens,
            "temperature": settings.temperature,
            "stream": True,
        }
        body["stream_options"] = {"include_usage": True}
        if settings.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if settings.ignore_eos:
            body["ignore_eos"] = True
        return body

    async def _tokens_per_word(self) -> float:
        """Tokens of one word at this server, from the usage that it reports; 1.5 where it reports none."""
        text = passage(_CALIBRATION_WORDS, random.Random(self._settings.seed + 2))
        async with asyncio.timeout(self._settings.timeout):
            result = await stream(self._endpoint, _PATHS[self._settings.endpoint], self._body(text, 1))
        return result.usage.prompt_tokens / _CALIBRATION_WORDS if result.usage and result.usage.prompt_tokens else 1.5


async def first_model(endpoint: Endpoint) -> str:
    """Name of the first model that the server lists."""
    listing = await fetch_json(endpoint, "GET", "/v1/models")
    try:
        return str(listing["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise RequestFailedError("bad answer", "/v1/models lists no model") from None


def _read_key(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip() or None
    except OSError as error:
        raise HeadraceError("invalid_setting", f"api_key_file can't be read: {error.strerror}", param="api_key_file") from None
