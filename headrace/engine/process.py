"""The engine process: started by the API process with one end of a socket pair, ended by its closing.

The socket is inherited and has no name, so that nobody else can talk to the engine.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys

import msgspec

from headrace.engine.allowance import Allowance
from headrace.engine.build import BuildOptions, BuiltEngine, build_engine, page_checksum
from headrace.engine.identity import content_identity, page_identity
from headrace.engine.lending_wire import Allow
from headrace.engine.loop import Engine
from headrace.engine.machine import return_memory
from headrace.engine.page_channel import Channel, PageListener
from headrace.engine.page_socket import is_network
from headrace.engine.relocating import Relocating
from headrace.engine.relocation_wire import Adopt, ApiMessage, Dismissed, Expect, Leave, Ping, Pong, Proceed, Release, Return
from headrace.engine.settings import EngineSettings
from headrace.engine.training_wire import StartTraining, StopTraining, TrainingCall, TrainingEnded
from headrace.engine.transport import EngineSocket, FrameError, PeerGone
from headrace.engine.watch_wire import Watch
from headrace.engine.wire import (
    AdapterAnswer,
    AdapterCall,
    Cancel,
    Drain,
    Failed,
    Instance,
    ListAdapters,
    PinAdapter,
    Refused,
    RegisterAdapter,
    RemoveAdapter,
    Start,
    StepOutputs,
    Submit,
)
from headrace.errors import HeadraceError
from headrace.settings.log_lines import configure_logs

logger = logging.getLogger("headrace.engine.process")

COMPILING_WAIT = 0.005  # seconds between looks at grammars that are being compiled
BLOCKED_WAIT = 0.05
WRITING_WAIT = 0.005  # seconds between looks at pages that are being written behind
CHANGING_WAIT = 0.001  # seconds between looks at pages that come from or go to another engine
READING_WAIT = 0.002  # seconds between looks at adapters that are being read
FILE_WAIT = 0.01  # seconds between looks at a job that waits for its files
GOODBYE_SECONDS = 10.0


class EngineServer:
    """Serves one connection with one engine until it drains or the peer goes."""

    def __init__(
        self,
        engine: Engine,
        connection: EngineSocket,
        relocating: Relocating | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self._engine = engine
        self._allowance = allowance
        self._relocating = relocating
        self._connection = connection
        self._draining = False
        self._checked_steps = -1
        self._untold = allowance is not None  # adapters, jobs or the pool's size have changed since the last gauges
        self._blocked: tuple[int, int] | None = None  # (waiting, pages) as last told while no step could run

    def run(self) -> None:
        """Messages at the border of steps, steps while there is work, sleep else. Returns when drained; raises PeerGone."""
        while True:
            for message in self._connection.receive():
                self._handle(message)
            if self._draining and self._engine.live == 0 and not (self._engine.has_work or self._changing_hands):
                self._connection.drain(GOODBYE_SECONDS)
                return
            self._turn()

    @property
    def _changing_hands(self) -> bool:
        return self._relocating is not None and self._relocating.busy

    def _turn(self) -> None:
        engine = self._engine
        told = self._relocate()
        if self._allowance is not None and self._allowance.follow():
            self._untold = True
        outputs = engine.step()
        for refused in engine.take_refused():
            self._connection.send(refused)
        for answer in engine.adapting.take_answers() if engine.adapting is not None else ():
            self._connection.send(answer)
            self._untold = True
        if outputs is not None:
            self._connection.send(outputs)
        if self._train():
            return
        if outputs is not None or told:
            return
        if self._changing_hands:
            self._connection.wait(CHANGING_WAIT)
        elif engine.reading_adapters:
            self._connection.wait(READING_WAIT)
        elif engine.live == 0 and engine.writes_behind and not self._draining:
            self._connection.wait(WRITING_WAIT)
        elif engine.live == 0:
            self._check_integrity()
            if self._untold:  # without a step, metrics would go on showing the adapters and jobs of the last one
                self._untold = False
                self._connection.send(StepOutputs([], engine.gauges()))
            idle = FILE_WAIT if engine.training is not None and engine.training.active else None
            self._connection.wait(0.0 if self._draining else idle)
        else:
            if self._allowance is not None:
                self._tell_blocked()
            seconds = COMPILING_WAIT if engine.compiling else BLOCKED_WAIT
            self._connection.wait(0.0 if engine.moving else seconds)  # a step waits for pages by itself

    def _tell_blocked(self) -> None:
        """Requests wait and no step can run: who lends pages must hear of it, once."""
        scheduler = self._engine.scheduler
        state = (scheduler.waiting, scheduler.pool.usable)
        if state != self._blocked:
            self._blocked = state
            self._connection.send(StepOutputs([], self._engine.gauges()))

    def _train(self) -> bool:
        """Units of fine-tuning, after what the step gave has been sent; any message ends them."""
        trained = not self._draining and self._engine.train(self._connection.readable)
        for event in self._engine.training.take_events() if self._engine.training is not None else ():
            self._connection.send(event)
            self._untold = True
        return trained

    def _relocate(self) -> bool:
        """Requests come and go before the step: what it gives them is told after the news that they are here."""
        if self._relocating is None or not self._relocating.busy:
            return False
        self._relocating.turn()
        news = self._relocating.take_news()
        for message in news:
            self._connection.send(message)
        return bool(news)

    def _check_integrity(self) -> None:
        """Once after each burst of work: with thousands of adapters it is not free, and registering them is no work."""
        steps = self._engine.scheduler.counters.steps
        if steps != self._checked_steps:
            self._checked_steps = steps
            self._engine.check_integrity()

    def _handle(self, message: ApiMessage) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Cancel():
                self._engine.cancel(message.request_id, message.choice)
            case Drain():
                self._draining = True
            case Watch():
                self._engine.watch.extend(message.seconds)
            case Allow():
                if self._allowance is None:
                    raise FrameError("this engine shares its pool with nobody")
                self._allowance.allow(message.bytes)
            case RegisterAdapter() | RemoveAdapter() | PinAdapter() | ListAdapters():
                self._ask(message)
            case StartTraining() | StopTraining():
                self._command_training(message)
            case Ping():
                refused = self._relocating.refused if self._relocating is not None else {}
                self._connection.send(Pong(message.number, self._engine.gauges(), refused))
            case Leave() | Expect() | Proceed() | Adopt() | Release() | Return():
                if self._relocating is None:
                    raise FrameError("an engine that is alone can't give requests away")
                if isinstance(message, Adopt):
                    self._engine.taken += message.move == 0
                self._relocating.handle(message)
            case Start() | Dismissed():
                raise FrameError("a running engine can't be started, nor be told what its worker is told")

    def _ask(self, call: AdapterCall) -> None:
        if self._engine.adapting is not None:
            self._engine.adapting.ask(call)
        else:
            message = "this engine serves no adapters"
            self._connection.send(AdapterAnswer(call.call_id, None, "unsupported_parameter", message))

    def _command_training(self, call: TrainingCall) -> None:
        training = self._engine.training
        if training is None or self._draining:
            code, problem = (
                ("unsupported_parameter", "this engine trains nothing") if training is None else ("draining", "the engine ends")
            )
            if isinstance(call, StartTraining):
                self._connection.send(TrainingEnded(call.job, "failed", 0, None, code, problem))
        elif isinstance(call, StartTraining):
            training.start(call)
        else:
            training.stop(call)

    def _submit(self, message: Submit) -> None:
        if self._relocating is not None:
            self._engine.taken += 1
        try:
            if self._draining:
                raise HeadraceError("draining", "the engine is shutting down")
            self._engine.submit(message)
        except HeadraceError as error:
            self._connection.send(Refused(message.request_id, error.code, error.message, error.param))


def serve(connection: EngineSocket) -> int:
    """Wait for Start, load, serve; the process's exit code. A peer that goes away is a normal end."""
    try:
        start = _await_start(connection)
        built = _build(start, connection)
        if built is None:
            return 1
        relocating = None
        ready = built.ready
        try:
            if start.instance is not None:
                channel = open_channel(built, start.instance, start.settings)
                relocating = Relocating(built.engine, channel)
                built.engine.taken = 0
                if is_network(start.instance.address):
                    ready = msgspec.structs.replace(ready, identity=channel.identity)
            if built.allowance is not None:
                built.engine.taken = 0  # its load is told with every step
            connection.send(ready)
            EngineServer(built.engine, connection, relocating, built.allowance).run()
        finally:
            if relocating is not None:
                relocating.close()
            built.close()
        return 0
    except PeerGone as gone:
        logger.info("engine ends: %s", gone)
        return 0
    except FrameError as error:
        logger.error("engine ends, connection closed: %s", error)
        return 1
    except Exception:
        logger.exception("the engine has failed")
        _say_failed(connection, Failed("internal_error", "the engine has failed; its log says why"))
        return 1


def open_channel(built: BuiltEngine, instance: Instance, settings: EngineSettings) -> Channel:
    """Where an engine among several takes pages from the others."""
    abroad = is_network(instance.address)
    identity = content_identity(built.model, settings) if abroad else page_identity(built.model, settings)
    listener = PageListener(instance.address, instance.key, built.arena.page_bytes, identity)
    return Channel(listener, instance.key, identity, page_checksum())


def _await_start(connection: EngineSocket) -> Start:
    while True:
        messages = connection.receive()
        if messages:
            if len(messages) != 1 or not isinstance(messages[0], Start):
                raise FrameError("the first message must be a start")
            return messages[0]
        connection.wait(None)


def _build(start: Start, connection: EngineSocket) -> BuiltEngine | None:
    if start.instance is not None and start.instance.cores:
        os.sched_setaffinity(0, start.instance.cores)  # before any thread is made, so that all of them stay there
    try:
        built = build_engine(start.settings, BuildOptions(start.scheduling, lending=start.lending))
    except HeadraceError as error:
        _say_failed(connection, Failed(error.code, error.message))
        return None
    gc.collect()
    gc.freeze()  # what is loaded stays; later collections look at requests only
    return_memory()
    return built


def _say_failed(connection: EngineSocket, failed: Failed) -> None:
    try:
        connection.send(failed)
        connection.drain(1.0)
    except PeerGone as gone:
        logger.info("nobody hears that the engine has failed: %s", gone)


def main(arguments: list[str]) -> int:
    """``python -m headrace.engine.process FD``: serve the connection inherited as that descriptor."""
    if len(arguments) != 1 or not arguments[0].isdigit():
        print("usage: the headrace server starts this process itself", file=sys.stderr)
        return 2
    configure_logs(os.environ.get("HEADRACE_LOG_FORMAT", "text"))
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the API process drains; its end closes the socket
        signal.signal(ignored, signal.SIG_IGN)
    connection = EngineSocket(socket.socket(fileno=int(arguments[0])))
    try:
        return serve(connection)
    finally:
        connection.close()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
