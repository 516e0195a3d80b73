"""The life of the server process: listen, load, serve, drain; and what it exits with."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from headrace.engine.client import EngineClient
from headrace.engine.machine import return_memory
from headrace.engine.settings import EngineSettings
from headrace.errors import HeadraceError
from headrace.scheduling.settings import SchedulingSettings
from headrace.server.auth import KeyRing
from headrace.server.settings import ServerSettings

if TYPE_CHECKING:
    from headrace.server.http import ApiServer
    from headrace.server.service import Service

logger = logging.getLogger("headrace.server")

SettingsType = TypeVar("SettingsType")
DEATH_NOTICE = 1.0
"""Seconds between the engine's death and our exit: clients get their errors and probes see 503."""


class Settings(Protocol):
    """Anything that gives the merged object of a settings class."""

    def of(self, kind: type[SettingsType]) -> SettingsType:
        """The object of one settings class."""
        ...


def serve(settings: Settings, client: type[EngineClient] = EngineClient) -> int:
    """Run a server in this process until it ends; the exit code (see :func:`headrace.server.app.run`)."""
    options = settings.of(ServerSettings)
    keys = KeyRing.read(options.api_key_file) if options.api_key_file is not None else None
    sock = listen(options)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(Runner(settings, sock, client, keys).run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where the extra ``fast`` is installed (14 MB, a tenth of the default set), else Python's own loop."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop
    return importlib.import_module("uvloop").new_event_loop  # type: ignore[no-any-return]


def listen(options: ServerSettings) -> socket.socket:
    """A bound socket. Raises ``invalid_setting`` when the address can't be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((options.host, options.port))
    except OSError as error:
        sock.close()
        problem = f"can't listen on {options.host} port {options.port}: {error.strerror or error}"
        raise HeadraceError("invalid_setting", problem, param="port") from error
    return sock


class Runner:
    """One server run: owns the engine, the HTTP server and the reaction to signals and death."""

    def __init__(self, settings: Settings, sock: socket.socket, client: type[EngineClient], keys: KeyRing | None) -> None:
        self._settings = settings
        self._keys = keys
        self._options = settings.of(ServerSettings)
        self._sock = sock
        self._engine = client(on_death=lambda error: self._fail(error.message))
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        """Serve until stopped; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        launched = await self._launch()  # the engine's process loads while the HTTP stack is imported here
        self._service = self._new_service()
        side_tasks = [asyncio.create_task(self._service.lag.run())]
        if launched:
            side_tasks.append(asyncio.create_task(self._load()))
        server = self._http_server()
        serving = asyncio.create_task(server.serve([self._sock]))
        host, port = self._sock.getsockname()[:2]
        say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
        await self._stop.wait()
        await self._wind_down()
        server.should_exit = True
        await serving
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        for task in side_tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._engine.stop()
        self._service.closed()
        return self._code

    async def _launch(self) -> bool:
        try:
            await self._engine.launch(self._settings.of(EngineSettings), self._settings.of(SchedulingSettings))
        except HeadraceError as error:
            self._fail(f"can't start: {error.message}")
            return False
        return True

    def _new_service(self) -> Service:
        from headrace.server.service import Service
        from headrace.server.tenants import Tenants

        return Service(self._options, self._engine, Tenants(self._keys.rules) if self._keys is not None else None)

    def _http_server(self) -> ApiServer:
        import uvicorn

        from headrace.server.application import create_app
        from headrace.server.http import ApiServer, GuardedProtocol

        return ApiServer(
            uvicorn.Config(
                create_app(self._service, self._keys), http=GuardedProtocol, ws="none", lifespan="off", log_config=None,
                access_log=False, server_header=False, timeout_graceful_shutdown=2, backlog=1024,
            )
        )  # fmt: skip

    async def _load(self) -> None:
        from headrace.server.language import open_language

        model = self._settings.of(EngineSettings).model
        try:
            ready, language = await asyncio.gather(
                self._engine.started(), asyncio.to_thread(open_language, model, self._options.text_threads)
            )
        except HeadraceError as error:
            self._fail(f"can't start: {error.message}")
            return
        except Exception:
            logger.exception("loading failed")
            self._fail("can't start because of a bug; the log has the trace")
            return
        gc.collect()
        gc.freeze()  # what is loaded stays; later collections look at requests only
        return_memory()
        self._service.opened(ready, language)
        say(f"{self._service.model_name} is ready ({ready.load_seconds:.1f} s, {ready.pages_total} pages)")

    def _on_signal(self) -> None:
        """The first signal drains, the second one ends the wait."""
        if self._stop.is_set():
            self._hurry.set()
        self._service.draining = True
        self._stop.set()

    def _fail(self, message: str) -> None:
        if self._code == 0:
            say(message)
        self._code = 1
        self._stop.set()
        self._hurry.set()

    async def _wind_down(self) -> None:
        """After a signal: let running requests finish up to the drain time, cut off the rest. After a death: be seen dead."""
        if self._code:
            await asyncio.sleep(DEATH_NOTICE)
            return
        idle = asyncio.create_task(self._service.wait_idle())
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({idle, hurry}, timeout=self._options.drain, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done():
            say(f"cutting off {self._service.in_flight} running sequences")
            await self._engine.stop()
        for task in (idle, hurry):
            task.cancel()


def say(message: str) -> None:
    """One line for the operator."""
    print(f"headrace: {message}", file=sys.stderr, flush=True)
