"""The API process's side of the engine: starts the engine process and turns its step messages into streams."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from headrace.engine.lending_wire import Allow, Lending
from headrace.engine.relocation_wire import ApiMessage, EngineMessage
from headrace.engine.request_stream import RequestStream
from headrace.engine.settings import EngineSettings
from headrace.engine.training_wire import StartTraining, StopTraining, TrainingEvent
from headrace.engine.transport import FrameError, Outbound, encode_frame
from headrace.engine.watch_wire import StepReport, Watch
from headrace.engine.wire import (
    AdapterAnswer,
    AdapterCall,
    AdapterCard,
    AdapterList,
    Cancel,
    Drain,
    Failed,
    Gauges,
    Instance,
    ListAdapters,
    PinAdapter,
    Ready,
    Refused,
    RegisterAdapter,
    RemoveAdapter,
    Start,
    StepOutputs,
    Submit,
)
from headrace.errors import ERROR_TABLE, HeadraceError
from headrace.scheduling.settings import SchedulingSettings

logger = logging.getLogger("headrace.engine.client")

__all__ = ["EngineClient", "RequestStream"]

MOST_REPORTS = 2048


class EngineClient:
    """One engine process, seen from an asyncio program. Not thread-safe: use it from its event loop only.

    ``on_training``, an attribute, hears what happens to fine-tuning jobs; ``lending``, another one, is told to the engine at start.
    ``on_death`` is called once, with the ``engine_dead`` error, when an engine that had started ends without having been told to.
    ``command`` starts the engine process; it gets the number of its end of the socket as last argument.
    """

    command: ClassVar[tuple[str, ...]] = (sys.executable, "-m", "headrace.engine.process")

    def __init__(self, on_death: Callable[[HeadraceError], None] | None = None, command: Sequence[str] | None = None) -> None:
        self._on_death = on_death
        self.on_training: Callable[[TrainingEvent], object] | None = None
        self._command = tuple(command or self.command)
        self._streams: dict[int, RequestStream] = {}
        self._calls: dict[int, asyncio.Future[AdapterAnswer | AdapterList]] = {}
        self.lending: Lending | None = None
        self._gauges = Gauges()
        self._reports: deque[StepReport] = deque(maxlen=MOST_REPORTS)
        self._ready: Ready | None = None
        self._started: asyncio.Future[Ready] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._failed: Failed | None = None
        self._dead: HeadraceError | None = None
        self._leaving = False
        self._last_id = 0

    async def start(self, settings: EngineSettings, scheduling: SchedulingSettings | None = None) -> Ready:
        """Start the engine process and wait until its model is loaded: :meth:`launch` and :meth:`started`."""
        await self.launch(settings, scheduling)
        return await self.started()

    async def started(self) -> Ready:
        """Wait until a launched engine has loaded its model.

        Raises the engine's own HeadraceError (``model_file``, ``model_not_found``, ``invalid_setting`` …) when it can't
        load, ``engine_dead`` when it ends without a word. Until this returns, :attr:`ready` is ``None``.
        """
        if self._started is None:
            raise RuntimeError("the engine has not been launched")
        return await asyncio.shield(self._started)

    async def launch(
        self, settings: EngineSettings, scheduling: SchedulingSettings | None = None, instance: Instance | None = None
    ) -> None:
        """Start the engine process and tell it what to load, without waiting for it. Raises ``engine_dead``."""
        if self._started is not None:
            raise RuntimeError("an EngineClient starts one engine")
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, str(theirs.fileno()), stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
            )
        except OSError as error:
            ours.close()
            raise HeadraceError("engine_dead", f"the engine process can't be started: {error.strerror}") from error
        finally:
            theirs.close()
        transport, _ = await loop.create_unix_connection(lambda: _Connection(self), sock=ours)
        self._transport = transport
        self._send(Start(settings, scheduling or SchedulingSettings(), instance, self.lending))

    @property
    def ready(self) -> Ready | None:
        """What the engine said when it had loaded; ``None`` while it loads and after its death."""
        return self._ready if self._dead is None else None

    @property
    def dead(self) -> HeadraceError | None:
        """Why the engine is gone, or ``None`` while it lives."""
        return self._dead

    @property
    def gauges(self) -> Gauges:
        """The engine's state after its newest step."""
        return self._gauges

    @property
    def live(self) -> int:
        """Requests submitted from here that have not ended."""
        return len(self._streams)

    def new_request_id(self) -> int:
        """A fresh id for :class:`Submit`."""
        self._last_id += 1
        return self._last_id

    def submit(self, request: Submit) -> RequestStream:
        """Send a request (``request_id`` from :meth:`new_request_id`) and return its stream at once.

        Raises ``engine_dead``, ``loading`` or ``draining``; what the engine itself refuses is raised by the stream.
        """
        self._check_serving()
        if request.request_id in self._streams:
            raise ValueError(f"request id {request.request_id} is in use")
        stream = RequestStream(self, request.request_id, 1 if request.embed else request.params.n)
        try:
            frame = encode_frame(request)
        except FrameError as error:
            raise HeadraceError("body_too_large", str(error)) from error
        self._streams[request.request_id] = stream
        self._write(frame)
        return stream

    def watch(self, seconds: float) -> None:
        """Ask for reports of the steps of the next seconds; :meth:`take_reports` gives them. Nothing before it is ready."""
        if self.ready is not None:
            self._send(Watch(seconds))

    def allow(self, size: int) -> None:
        """Let the pages of an engine with :attr:`lending` take so many bytes; its gauges show when they do."""
        if self.ready is not None:
            self._send(Allow(size))

    def take_reports(self) -> list[StepReport]:
        """Reports that came since the last call, the newest 2,048 at most."""
        reports = list(self._reports)
        self._reports.clear()
        return reports

    def cancel(self, request_id: int, choice: int | None = None) -> None:
        """Stop a request or one choice of it (see :meth:`RequestStream.cancel`). Unknown ids are ignored."""
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.cancel(choice)

    async def register_adapter(
        self, name: str, folder: str, *, expected_generation: int | None = None, pin: bool = False, check_values: bool = False
    ) -> AdapterCard:
        """Give a PEFT folder a name (see :class:`RegisterAdapter`).

        Raises ``model_file``, ``invalid_value`` or ``adapter_conflict``, and what :meth:`submit` raises.
        """
        return await self._card(RegisterAdapter(self.new_request_id(), name, folder, expected_generation, pin, check_values))

    async def remove_adapter(self, name: str, *, expected_generation: int | None = None) -> AdapterCard:
        """Take a name away. Raises ``adapter_not_found`` or ``adapter_conflict``."""
        return await self._card(RemoveAdapter(self.new_request_id(), name, expected_generation))

    async def pin_adapter(self, name: str, *, pinned: bool) -> AdapterCard:
        """Keep an adapter in memory, or no longer. Raises ``adapter_not_found``, or ``invalid_value`` when it has no room."""
        return await self._card(PinAdapter(self.new_request_id(), name, pinned))

    async def list_adapters(self) -> list[AdapterCard]:
        """The cards of all adapters that have names, the oldest first."""
        answer = await self._call(ListAdapters(self.new_request_id()))
        assert isinstance(answer, AdapterList), "a list is answered by a list"
        return answer.cards

    def start_training(self, start: StartTraining) -> None:
        """Start a job or go on with one; :attr:`on_training` hears how it goes. Raises what :meth:`submit` raises."""
        self._check_serving()
        self._send(start)

    def stop_training(self, job: str, how: Literal["pause", "cancel"]) -> None:
        """Pause or cancel a job; its TrainingEnded says when that is done."""
        self._check_serving()
        self._send(StopTraining(job, how))

    async def _card(self, call: AdapterCall) -> AdapterCard:
        answer = await self._call(call)
        assert isinstance(answer, AdapterAnswer), "a call about one adapter is answered by its card"
        if answer.card is None:
            raise HeadraceError(answer.code, answer.message, param=answer.param)
        return answer.card

    async def _call(self, call: AdapterCall) -> AdapterAnswer | AdapterList:
        self._check_serving()
        future: asyncio.Future[AdapterAnswer | AdapterList] = asyncio.get_running_loop().create_future()
        self._calls[call.call_id] = future
        try:
            self._send(call)
            return await future
        finally:
            del self._calls[call.call_id]

    async def drain(self, timeout: float | None = None) -> bool:
        """Let what runs finish, take nothing new, and wait for the engine's end; True when it ended in time (seconds)."""
        self._leaving = True
        if self._dead is None:
            self._send(Drain())
        return await self._wait_exit(timeout)

    async def stop(self) -> int | None:
        """End the engine now: close the connection, wait 5 s, kill. Open streams raise ``engine_dead``. Returns the exit code."""
        self._leaving = True
        if self._transport is not None:
            self._transport.close()
        if not await self._wait_exit(5.0) and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        return self._process.returncode if self._process is not None else None

    async def _wait_exit(self, timeout: float | None) -> bool:
        if self._process is None:
            return True
        try:
            await asyncio.wait_for(self._process.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def _check_serving(self) -> None:
        if self._dead is not None:
            raise self._dead
        if self._ready is None:
            raise HeadraceError("loading", ERROR_TABLE["loading"].meaning)
        if self._leaving:
            raise HeadraceError("draining", ERROR_TABLE["draining"].meaning)

    def _send(self, message: ApiMessage) -> None:
        self._write(encode_frame(message))

    def _write(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def _send_cancel(self, request_id: int, choice: int | None) -> None:
        self._send(Cancel(request_id, choice))

    def _forget(self, request_id: int) -> None:
        self._streams.pop(request_id, None)

    def _handle(self, message: EngineMessage) -> None:
        match message:
            case StepOutputs():
                self._gauges = message.gauges
                if message.report is not None:
                    self._reports.append(message.report)
                for output in message.outputs:
                    stream = self._streams.get(output.request_id)
                    if stream is not None:
                        stream._push(output)
            case Refused():
                stream = self._streams.get(message.request_id)
                if stream is not None:
                    stream._fail(HeadraceError(message.code, message.message, param=message.param))
            case AdapterAnswer() | AdapterList():
                call = self._calls.get(message.call_id)
                if call is not None and not call.done():
                    call.set_result(message)
            case _ if isinstance(message, TrainingEvent):
                if self.on_training is not None:
                    self.on_training(message)
            case Ready():
                self._ready = message
                if self._started is not None and not self._started.done():
                    self._started.set_result(message)
            case Failed():
                self._failed = message

    def _lost(self, reason: str) -> None:
        if self._dead is not None:
            return
        failed = self._failed
        self._dead = HeadraceError("engine_dead", failed.message if failed else reason)
        if self._started is not None and not self._started.done():
            code = failed.code if failed and failed.code in ERROR_TABLE else "engine_dead"
            self._started.set_exception(HeadraceError(code, self._dead.message))
        for stream in list(self._streams.values()):
            stream._fail(HeadraceError("engine_dead", self._dead.message))
        for call in self._calls.values():
            if not call.done():
                call.set_exception(HeadraceError("engine_dead", self._dead.message))
        if self._ready is not None and not self._leaving and self._on_death is not None:
            self._on_death(self._dead)


class _Connection(asyncio.Protocol):
    """Feeds received bytes to the client; any nonsense closes the connection with one log line."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._inbound = Outbound()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._inbound.feed(data):
                self._client._handle(message)
        except FrameError as error:
            logger.error("connection to the engine closed: %s", error)
            if self._transport is not None:
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._client._lost("the engine process has ended")
