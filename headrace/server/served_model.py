"""One model of the server: out of memory or in it, with its engine process, its text side and those who use or await it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headrace.engine.client import EngineClient
from headrace.engine.lending_wire import Lending
from headrace.engine.settings import EngineSettings
from headrace.engine.watch_wire import StepReport
from headrace.engine.wire import Gauges, Ready
from headrace.errors import HeadraceError
from headrace.instances.group import InstanceGroup
from headrace.instances.maker import EngineMaker
from headrace.placement.back_off import BackOff
from headrace.scheduling.settings import SchedulingSettings
from headrace.server.engine_totals import EngineTotals
from headrace.server.fit_plan import Need
from headrace.server.model_names import Entry

if TYPE_CHECKING:
    from headrace.server.language import Language

State = Literal["cold", "loading", "hot", "leaving", "failed"]
STATES: tuple[State, ...] = ("cold", "loading", "hot", "leaving", "failed")
UNLOAD_SECONDS = 10.0
"""How long an idle engine may take to end before it is killed."""


@dataclass(slots=True)
class Counts:
    """What happened to one model so far."""

    loads: int = 0
    load_seconds: float = 0.0
    unloads: int = 0
    crashes: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a request needs of a model in memory."""

    engine: EngineClient
    language: Language
    ready: Ready


class ServedModel:
    """The state of one model. Its table alone changes it, and only between awaits, so that what is read is never half true.

    Whoever uses the model is counted in ``users``; whoever waits for it has a future in ``queue``, in order of arrival.
    ``apart``: it shares the server with others, so its tokenizer is made in another process.
    """

    def __init__(self, entry: Entry, maker: EngineMaker, *, pinned: bool, keep: float, apart: bool) -> None:
        self.entry = entry
        self.pinned = pinned
        self.keep = keep
        self.state: State = "cold"
        self.error: HeadraceError | None = None
        self.retry_at = 0.0
        self.need: Need | None = None
        self.context_length: int | None = None
        self.users = 0
        self.queue: deque[asyncio.Future[Loaded]] = deque()
        self.unused = asyncio.Event()
        self.unused.set()
        self.last_used = time.monotonic()
        self.counts = Counts()
        self.hot_since = 0.0
        self.back_off = BackOff()
        self.task: asyncio.Task[None] | None = None
        self.lending: Lending | None = None
        self.loaded: Loaded | None = None
        self.launched = asyncio.Event()
        self._maker = maker
        self._apart = apart
        self._engine: EngineClient | None = None
        self._totals = EngineTotals()

    @property
    def name(self) -> str:
        """The name that requests use and answers carry."""
        return self.entry.name

    @property
    def waiting(self) -> int:
        """Requests that wait until the model is in memory."""
        return sum(not future.done() for future in self.queue)

    @property
    def in_memory(self) -> bool:
        """True when its part of the memory is taken."""
        return self.state in ("loading", "hot", "leaving")

    @property
    def live(self) -> int:
        """Requests at its engine."""
        return self._engine.live if self._engine is not None else 0

    @property
    def group(self) -> InstanceGroup | None:
        """Its engines, when there are several and they are in memory."""
        return self._engine if isinstance(self._engine, InstanceGroup) else None

    def gauges(self) -> Gauges:
        """The engine's state; what only grows goes on growing over unloads and crashes."""
        return self._totals.with_engine(self._engine.gauges if self._engine is not None else None)

    def watched(self, seconds: float) -> list[StepReport]:
        """Reports of its steps since the last call; the engine goes on reporting for some seconds."""
        if self._engine is None:
            return []
        self._engine.watch(seconds)
        return self._engine.take_reports()

    async def open(
        self, settings: EngineSettings, scheduling: SchedulingSettings, on_death: Callable[[HeadraceError], None]
    ) -> None:
        """Start the engine's process and open the text side beside it. Raises why it can't be; nothing is left then."""
        began = time.monotonic()
        engine = self._engine = self._maker(on_death)
        engine.lending = self.lending
        opened: Language | None = None
        try:
            try:
                await engine.launch(settings, scheduling)
            finally:
                self.launched.set()
            await asyncio.sleep(0)  # whoever waited for the launch goes first: at start that is the import of the HTTP stack
            ready, language = await self._both(engine, settings.model)
            if isinstance(language, BaseException):
                raise language
            opened = language
            if isinstance(ready, BaseException):
                raise ready
        except BaseException:
            await self._end_engine()
            if opened is not None and self.loaded is None:
                opened.close()
            raise
        language.context_length = self.context_length = ready.context_length
        self.loaded = Loaded(engine, language, ready)
        self.counts.loads += 1
        self.counts.load_seconds += time.monotonic() - began

    async def _both(self, engine: EngineClient, model: str) -> tuple[Ready | BaseException, Language | BaseException]:
        from headrace.server.language import open_language, open_language_apart

        if self.loaded is not None:  # after a crash: the text side is as it was
            return (await asyncio.gather(engine.started(), return_exceptions=True))[0], self.loaded.language
        opening = asyncio.to_thread(open_language_apart if self._apart else open_language, model, 1)
        ready, language = await asyncio.gather(engine.started(), opening, return_exceptions=True)
        return ready, language

    def use(self) -> None:
        """One more request runs on it."""
        self.users += 1
        self.unused.clear()

    def release(self) -> None:
        """One request has ended."""
        self.users -= 1
        self.last_used = time.monotonic()
        if not self.users:
            self.unused.set()

    def serve_queue(self) -> None:
        """Let in everybody who waited, in order; from here on they count as users, so that nothing can come between."""
        assert self.loaded is not None
        while self.queue:
            future = self.queue.popleft()
            if not future.done():
                self.use()
                future.set_result(self.loaded)

    def fail_queue(self, error: HeadraceError) -> None:
        """Tell everybody who waits that it was in vain."""
        while self.queue:
            future = self.queue.popleft()
            if not future.done():
                future.set_exception(error)

    async def close(self) -> None:
        """Give back the engine and the text side."""
        await self._end_engine(UNLOAD_SECONDS)
        if self.loaded is not None:
            self.loaded.language.close()
            self.loaded = None

    async def stop_engine(self) -> None:
        """End the engine now; its streams fail."""
        if self._engine is not None:
            await self._engine.stop()

    async def _end_engine(self, patience: float = 0.0) -> None:
        engine = self._engine
        if engine is None:
            return
        if not patience or not await engine.drain(patience):
            await engine.stop()
        self.forget_engine()

    def forget_engine(self) -> None:
        """The engine is gone; its counts stay."""
        if self._engine is not None:
            self._totals.add(self._engine.gauges)
            self._engine = None
