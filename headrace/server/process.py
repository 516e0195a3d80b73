"""The life of the server process: listen, load, serve, drain; and what it exits with."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from headrace.engine.client import EngineClient
from headrace.engine.machine import return_memory
from headrace.engine.settings import EngineSettings, ModelSettings
from headrace.errors import HeadraceError
from headrace.scheduling.settings import SchedulingSettings
from headrace.server.auth import KeyRing
from headrace.server.model_names import entries
from headrace.server.model_table import ModelTable
from headrace.server.notices import say
from headrace.server.settings import ServerSettings
from headrace.server.storage.folder import StateFolder, default_folder
from headrace.settings.log_lines import configure_logs

if TYPE_CHECKING:
    from headrace.server.http import ApiServer
    from headrace.server.hub import Hub

logger = logging.getLogger("headrace.server")

SettingsType = TypeVar("SettingsType")
DEATH_NOTICE = 1.0
"""Seconds between the engine's death and our exit: clients get their errors and probes see 503."""
BACKLOG = 1024
"""Connections that wait to be taken."""


class Settings(Protocol):
    """Anything that gives the merged object of a settings class."""

    def of(self, kind: type[SettingsType]) -> SettingsType:
        """The object of one settings class."""
        ...


def serve(settings: Settings, client: type[EngineClient] = EngineClient) -> int:
    """Run a server in this process until it ends; the exit code (see :func:`headrace.server.app.run`)."""
    options = settings.of(ServerSettings)
    configure_logs(options.log_format)
    os.environ["HEADRACE_LOG_FORMAT"] = options.log_format  # for the processes of engines
    keys = KeyRing.read(options.api_key_file) if options.api_key_file is not None else None
    check_folders(options)
    models = entries(settings.of(ModelSettings).model, options.served_name)
    engine = settings.of(EngineSettings), settings.of(SchedulingSettings)
    table = ModelTable(models, options, engine, client)
    folder = claim_folder(options)
    sock = listen(options)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(Runner(options, sock, table, keys, folder).run())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where the extra ``fast`` is installed (14 MB, a tenth of the default set), else Python's own loop."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop
    return importlib.import_module("uvloop").new_event_loop  # type: ignore[no-any-return]


def check_folders(options: ServerSettings) -> None:
    """Raise ``invalid_setting`` for an ``adapter_dir`` that is no folder."""
    for folder in options.adapter_dir:
        if not Path(folder).expanduser().is_dir():
            raise HeadraceError("invalid_setting", f"adapter_dir: {folder[:200]!r} is no folder", param="adapter_dir")


def listen(options: ServerSettings) -> socket.socket:
    """A socket that takes connections from now on: who comes before the HTTP stack stands waits for it, and is not refused.

    Raises ``invalid_setting`` when the address can't be had.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # By its protocol number asyncio knows a TCP socket, and sends small answers at once (TCP_NODELAY) instead of waiting up to
    # 40 ms for the client to acknowledge the piece before.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((options.host, options.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        problem = f"can't listen on {options.host} port {options.port}: {error.strerror or error}"
        raise HeadraceError("invalid_setting", problem, param="port") from error
    return sock


def claim_folder(options: ServerSettings) -> StateFolder | None:
    """The folder for files, batches and jobs; ``None`` when the default one can't be had: the server then does without.

    Raises ``invalid_setting`` when the folder that the options name can't be had.
    """
    try:
        return StateFolder(Path(options.state_dir).expanduser() if options.state_dir is not None else default_folder())
    except HeadraceError as error:
        if options.state_dir is not None:
            raise
        say(f"no files, batches or fine-tuning here: {error.message}")
        return None


class Runner:
    """One server run: owns the models, the HTTP server and the reaction to signals and death."""

    def __init__(
        self, options: ServerSettings, sock: socket.socket, table: ModelTable, keys: KeyRing | None, folder: StateFolder | None
    ) -> None:
        self._options = options
        self._folder = folder
        self._keys = keys
        self._sock = sock
        self._table = table
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        """Serve until stopped; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        side_tasks = [asyncio.create_task(self._load()), asyncio.create_task(self._watch_death())]
        if not await self._begins(side_tasks[0]):
            return await self._give_up(side_tasks)
        self._hub = self._new_hub()
        self._open_desk()
        side_tasks.append(asyncio.create_task(self._hub.lag.run()))
        side_tasks.append(asyncio.create_task(self._hub.adapter_watch.run()))
        server = self._http_server()
        serving = asyncio.create_task(server.serve([self._sock]))
        host, port = self._sock.getsockname()[:2]
        say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
        await self._stop.wait()
        if self._hub.opened_desk is not None:
            await self._hub.opened_desk.close()  # its work goes on at the next start; clients' requests may finish
        await self._wind_down()
        server.should_exit = True
        await serving
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        for task in side_tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._hub.adapters.close()
        await self._table.close()
        if self._hub.traces is not None:
            await asyncio.to_thread(self._hub.traces.close)
        return self._code

    async def _begins(self, loading: asyncio.Task[None]) -> bool:
        """Wait until an engine's process loads, while the HTTP stack is imported here; False when none ever will."""
        begun = asyncio.create_task(self._table.begun())
        await asyncio.wait({begun, loading}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        return not self._stop.is_set()

    async def _give_up(self, tasks: list[asyncio.Task[None]]) -> int:
        """End before anybody was told that the server listens."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._table.close()
        self._sock.close()
        if self._folder is not None:
            self._folder.close()
        return self._code

    def _new_hub(self) -> Hub:
        from headrace.server.hub import Hub
        from headrace.server.tenants import Tenants

        return Hub(self._options, self._table, Tenants(self._keys.rules) if self._keys is not None else None)

    def _open_desk(self) -> None:
        """Files, batches and jobs, where there is a folder for them."""
        from headrace.server.desk import Desk
        from headrace.server.routes import GENERATING

        if self._folder is None:
            return
        self._hub.opened_desk = Desk(self._hub, self._folder, {endpoint.paths[0]: endpoint for endpoint in GENERATING})
        self._hub.opened_desk.start()

    def _http_server(self) -> ApiServer:
        import uvicorn

        from headrace.server.application import create_app
        from headrace.server.http import ApiServer, GuardedProtocol

        return ApiServer(
            uvicorn.Config(
                create_app(self._hub, self._keys), http=GuardedProtocol, ws="none", lifespan="off", log_config=None,
                access_log=False, server_header=False, timeout_graceful_shutdown=2, backlog=BACKLOG,
            )
        )  # fmt: skip

    async def _load(self) -> None:
        try:
            await self._table.start()
        except HeadraceError as error:
            self._fail(f"can't start: {error.message}")
            return
        gc.collect()
        gc.freeze()  # what is loaded stays; later collections look at requests only
        return_memory()

    async def _watch_death(self) -> None:
        self._fail((await self._table.died()).message)

    def _on_signal(self) -> None:
        """The first signal drains, the second one ends the wait."""
        if self._stop.is_set():
            self._hurry.set()
        self._hub.drain()
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
        idle = asyncio.create_task(self._hub.wait_idle())
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({idle, hurry}, timeout=self._options.drain, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done():
            say(f"cutting off {self._hub.in_flight} running sequences")
            await self._table.stop()
        for task in (idle, hurry):
            task.cancel()
