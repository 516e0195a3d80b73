"""One generating call from submit to its last token: prompts out to the engine, text pieces back, cancelled when abandoned."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType

import msgspec

from headrace.engine.client import RequestStream
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.wire import AdapterUse, Submit, TokenLogprob, TokenOutput
from headrace.errors import HeadraceError
from headrace.server.observing.origin import ORIGIN
from headrace.server.observing.request_clock import RequestClock, Told
from headrace.server.rate_limits import Claim
from headrace.server.rendering import internal_error, table_error
from headrace.server.service import Service
from headrace.server.tenants import Standing
from headrace.text.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt of a call. Its choices get the indices ``first_index`` and up. ``deadline`` in seconds from now.

    ``speculation`` and ``prediction`` as in :class:`headrace.engine.wire.Submit`.
    ``grammar_param``: the field that the parameters' grammar came from, for the engine's refusal of it.
    """

    prompt: list[int]
    params: SamplingParams
    stop: tuple[str, ...] = ()
    deadline: float | None = None
    first_index: int = 0
    grammar_param: str | None = None
    keep_special: tuple[str, ...] = ()
    speculation: int | None = None
    prediction: Sequence[int] = ()


@dataclass(slots=True)
class Piece:
    """What one choice got since the last piece: decoded text, its tokens, and how it ended if it has.

    ``offsets``: characters of the choice's text that were complete before each token. ``logprobs`` is parallel to
    ``tokens`` when asked for. ``prompt_logprobs`` comes once, with a job's first piece. ``stop``: the stop string that ended it.
    """

    index: int
    text: str
    tokens: list[int]
    offsets: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    finish: str | None = None
    stop: str | None = None


@dataclass(slots=True)
class Totals:
    """Token counts of a call so far; prompts count once whatever n is."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(slots=True)
class _Running:
    """A submitted job with the text state of its choices."""

    job: Job
    stream: RequestStream
    clock: RequestClock
    texts: list[TextStream]
    cached: int = 0
    open: set[int] = field(default_factory=set)


class Generation:
    """All jobs of one call, run together.

    Use as ``async with`` and iterate: each turn is a non-empty list of pieces, everything since the last turn. Leaving the
    block cancels whatever still runs. A turn that is cancelled (by a timeout) loses nothing.
    """

    def __init__(self, service: Service, jobs: list[Job], standing: Standing, claim: Claim) -> None:
        self._service = service
        self._standing = standing
        self._claim = claim
        self._counts = service.metrics.tenants.of(standing.label)
        self._metrics = service.metrics
        self._jobs = jobs
        self._admission = ExitStack()
        self._running: list[_Running] = []
        self._queue: asyncio.Queue[tuple[int, list[TokenOutput] | HeadraceError | None]] = asyncio.Queue()
        self._pumps: list[asyncio.Task[None]] = []
        self.totals = Totals(prompt=sum(len(job.prompt) for job in jobs))

    async def __aenter__(self) -> Generation:
        sequences = sum(job.params.n for job in self._jobs)
        self._admission.enter_context(self._service.admitted(sequences, self.totals.prompt, self._claim))
        try:
            for job in self._jobs:
                self._running.append(self._submit(job))
        except BaseException:
            self._cancel_all()
            raise
        if len(self._running) > 1:
            self._pumps = [asyncio.create_task(self._pump(number)) for number in range(len(self._running))]
        return self

    def _submit(self, job: Job) -> _Running:
        engine = self._service.engine
        stream = engine.submit(_submit(engine.new_request_id(), job, self._standing, self._service.adapters))
        texts = [self._service.language.text_stream(job.stop, job.keep_special) for _ in range(job.params.n)]
        origin = ORIGIN.get()
        told = Told(
            origin.request_id if origin is not None else "", self._service.base_name, self._service.model_name,
            self._standing.tenant, self._standing.label, len(job.prompt), job.params.n, job.params.max_tokens, stream.request_id,
        )  # fmt: skip
        return _Running(job, stream, RequestClock(self._metrics, self._counts, told), texts, open=set(range(job.params.n)))

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cancel_all()
        for pump in self._pumps:
            pump.cancel()
        for pump in self._pumps:
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    def _cancel_all(self) -> None:
        for running in self._running:
            for _ in running.open:
                running.clock.choice_ended("cancelled")
            running.open.clear()
            running.clock.stop()
            running.stream.cancel()
        self._admission.close()

    @property
    def tier(self) -> str | msgspec.UnsetType:
        """The service tier that the answer names, when the call asked for one."""
        return self._standing.told_tier

    @property
    def done(self) -> bool:
        """True when every choice has ended."""
        return not any(running.open for running in self._running)

    def __aiter__(self) -> AsyncIterator[list[Piece]]:
        return self

    async def __anext__(self) -> list[Piece]:
        while not self.done:
            try:
                pieces = await (self._next_of_one() if len(self._running) == 1 else self._next_of_many())
            except HeadraceError as error:
                if error.code == "invalid_grammar":
                    raise HeadraceError(error.code, error.message, param=self._jobs[0].grammar_param) from None
                raise
            if pieces:
                return pieces
        raise StopAsyncIteration

    async def _next_of_one(self) -> list[Piece]:
        try:
            outputs = await anext(self._running[0].stream)
        except StopAsyncIteration:
            raise internal_error() from None
        return self._take(0, outputs)

    async def _next_of_many(self) -> list[Piece]:
        entries = [await self._queue.get()]
        while not self._queue.empty():
            entries.append(self._queue.get_nowait())
        pieces: list[Piece] = []
        for number, outputs in entries:
            if isinstance(outputs, HeadraceError):
                raise outputs
            if outputs is not None:
                pieces += self._take(number, outputs)
            elif self._running[number].open:
                raise internal_error()
        return pieces

    async def _pump(self, number: int) -> None:
        try:
            async for outputs in self._running[number].stream:
                self._queue.put_nowait((number, outputs))
        except HeadraceError as error:
            self._queue.put_nowait((number, error))
        else:
            self._queue.put_nowait((number, None))

    def _take(self, number: int, outputs: list[TokenOutput]) -> list[Piece]:
        """Turn engine outputs of one job into pieces, one for each choice that got something."""
        running = self._running[number]
        pieces: dict[int, Piece] = {}
        for output in outputs:
            if output.cached_tokens > running.cached:
                self.totals.cached += output.cached_tokens - running.cached
                running.cached = output.cached_tokens
            if output.choice not in running.open:
                continue
            self.totals.drafted += output.drafted
            self.totals.accepted += output.accepted
            index = running.job.first_index + output.choice
            piece = pieces.setdefault(output.choice, Piece(index, "", []))
            if output.prompt_logprobs is not None:
                piece.prompt_logprobs = output.prompt_logprobs
            self._add(running, output, piece)
            running.clock.tokens(output.choice, len(output.tokens), output.queue_seconds)
        if not running.open:
            self._finish_job(number)
        return list(pieces.values())

    def _add(self, running: _Running, output: TokenOutput, piece: Piece) -> None:
        """Feed tokens to the choice's text until it ends; tokens behind a stop string are dropped."""
        text = running.texts[output.choice]
        delta = text.push(output.tokens)
        used = len(delta.pieces)
        piece.text += delta.text
        piece.tokens += output.tokens[:used]
        piece.offsets += [entry.offset for entry in delta.pieces]
        self.totals.completion += used
        for counts in self._service.adapter_counts:
            counts.generated_tokens.inc(used)
        self._claim.used(used)
        if output.logprobs is not None:
            piece.logprobs = [*(piece.logprobs or ()), *output.logprobs[:used]]
        if delta.finished_by_stop is not None:
            piece.stop = delta.finished_by_stop
            running.stream.cancel(output.choice)
            self._close(running, output.choice, piece, "stop")
        elif output.finish is not None:
            self.totals.completion += output.stop_token is not None
            last = text.finish()
            piece.text += last.text
            piece.stop = last.finished_by_stop
            self._close(running, output.choice, piece, "stop" if last.finished_by_stop is not None else output.finish)

    def _close(self, running: _Running, choice: int, piece: Piece, reason: str) -> None:
        running.open.discard(choice)
        piece.finish = reason
        running.clock.choice_ended(reason)
        if reason == "deadline":
            raise table_error("deadline_exceeded")
        if reason in ("error", "cancelled"):
            raise internal_error()

    def _finish_job(self, number: int) -> None:
        self._running[number].clock.end(self._running[number].cached)
        for counts in self._service.adapter_counts:
            counts.requests.inc()
            counts.prompt_tokens.inc(len(self._running[number].job.prompt))


def _submit(request_id: int, job: Job, standing: Standing, adapters: list[AdapterUse]) -> Submit:
    return Submit(
        request_id, job.prompt, job.params, job.deadline, priority=standing.priority, tenant=standing.tenant,
        share=standing.tenant, weight=standing.weight, adapters=adapters, speculation=job.speculation,
        prediction=list(job.prediction),
    )  # fmt: skip
