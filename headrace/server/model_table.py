"""All models of a server: finds them by name, brings them into memory when wanted, and sends them out again."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from headrace.engine.client import EngineClient
from headrace.engine.settings import EngineSettings
from headrace.errors import ERROR_TABLE, HeadraceError
from headrace.instances.maker import engine_maker
from headrace.placement.back_off import BackOff
from headrace.scheduling.settings import SchedulingSettings
from headrace.server.fit_plan import Held, Need, describe, process_bytes, split_pool, who_leaves
from headrace.server.lender import Lender
from headrace.server.model_names import Entry
from headrace.server.notices import say
from headrace.server.served_model import Loaded, ServedModel
from headrace.server.settings import ServerSettings

logger = logging.getLogger("headrace.server")

RETRY_SECONDS = 5.0
"""A model that could not be loaded is tried again by a request after this time, not before."""
"""An engine that ran this long had no part in the crashes before it."""


class ModelTable:
    """The models with their comings and goings; one load at a time, so that a plan holds until it is carried out.

    A server with one model (``alone``) loads it at start as it is asked to, without a plan, and ends when its engine dies.
    :meth:`died` ends then.
    """

    def __init__(
        self,
        entries: list[Entry],
        options: ServerSettings,
        engine: tuple[EngineSettings, SchedulingSettings],
        client: type[EngineClient],
    ) -> None:
        self._options = options
        self._engine, self._scheduling = engine
        self._by_name: dict[str, ServedModel] = {}
        maker = engine_maker(options.roles, client, options.joining, options.scaling)
        apart = len(entries) > 1
        self.models = [ServedModel(entry, maker, pinned=False, keep=options.unload_after, apart=apart) for entry in entries]
        for model in self.models:
            model.back_off = BackOff(options.restart_delay)
            self._by_name |= dict.fromkeys(model.entry.names, model)
        for name in options.pin:
            if name not in self._by_name:
                served = ", ".join(model.name for model in self.models)
                raise HeadraceError("invalid_setting", f"pin names {name!r}, which is none of {served}", param="pin")
            self._by_name[name].pinned = True
        self.alone = len(self.models) == 1
        self.lender = Lender(self.models)
        self.opened = False
        self.dead: HeadraceError | None = None
        self.on_arrival: Callable[[ServedModel], None] = lambda model: None  # it has come into memory
        self._died = asyncio.Event()
        self._closing = False
        self._turn = asyncio.Lock()
        self._room: int | None = None
        self._needs: dict[str, Need] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self.models)

    def get(self, name: str | None) -> ServedModel | None:
        """The model of that name, if there is one."""
        return self._by_name.get(name) if name is not None else None

    def find(self, name: str | None, hint: str = ".") -> ServedModel:
        """The model of that name, the first one without a name. Raises ``model_not_found`` with the names there are.

        ``hint``: the end of that sentence.
        """
        if name is None:
            return self.models[0]
        model = self._by_name.get(name)
        if model is None:
            names = ", ".join(f"'{model.name}'" for model in self.models)
            message = f"The model '{printable(name)}' does not exist here; {names} {'is' if self.alone else 'are'} served{hint}"
            raise HeadraceError("model_not_found", message, param="model")
        return model

    async def start(self) -> None:
        """Load what must be there from the start. Raises why an only model can't be."""
        if self.alone:
            model = self.models[0]
            self._begin_load(model)
            await self._settled(model)
            if model.state == "failed" and model.error is not None:
                raise model.error
        else:
            async with self._turn:
                await self._survey()
            for model in self.models:
                if model.pinned and model.state == "cold":
                    self._begin_load(model)
                    await self._settled(model)
        self.opened = True

    async def begun(self) -> None:
        """Wait until the process of an only model has been started (or can't be), so that it loads beside what follows."""
        if self.alone:
            await self.models[0].launched.wait()

    async def use(self, model: ServedModel, keep: float | None = None) -> Loaded:
        """Count a request in, once the model is in memory; :meth:`release` counts it out.

        Raises ``model_failed``, ``draining``, or ``loading`` when too many wait or it takes too long.
        """
        self._check_closing()
        model.keep = keep if keep is not None else self._options.unload_after
        if model.state == "hot" and model.loaded is not None:
            model.use()
            return model.loaded
        return await self._wait(model)

    def release(self, model: ServedModel) -> None:
        """A request counted in by :meth:`use` has ended."""
        model.release()
        self._watch(model)

    async def unload(self, model: ServedModel) -> None:
        """Send a model out of memory once its requests have ended; those that come meanwhile bring it back."""
        while model.state in ("loading", "leaving"):
            await self._settled(model)
        if model.state == "hot":
            self._begin_leaving(model)
            await self._settled(model)

    def drain(self) -> None:
        """Nothing new comes in; who waits for a model is told."""
        self._closing = True
        for model in self.models:
            model.fail_queue(HeadraceError("draining", ERROR_TABLE["draining"].meaning))

    async def stop(self) -> None:
        """End every engine now."""
        await asyncio.gather(*(model.stop_engine() for model in self.models))

    async def close(self) -> None:
        """End everything: loads under way, engines, text sides."""
        self.drain()
        await self.lender.close()
        for timer in self._timers.values():
            timer.cancel()
        for model in self.models:
            if model.task is not None:
                model.task.cancel()
                with suppress(asyncio.CancelledError):
                    await model.task
        await self.stop()
        for model in self.models:
            await model.close()

    def _check_closing(self) -> None:
        if self._closing:
            raise HeadraceError("draining", ERROR_TABLE["draining"].meaning)

    async def _wait(self, model: ServedModel) -> Loaded:
        if sum(other.waiting for other in self.models) >= self._options.max_queue:
            raise HeadraceError("loading", "Too many requests wait for models to be loaded.")
        if model.state == "failed" and model.error is not None and time.monotonic() < model.retry_at:
            raise model.error
        if model.state in ("cold", "failed"):
            self._begin_load(model)
        future: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        model.queue.append(future)
        try:
            async with asyncio.timeout(self._options.load_timeout):
                return await future
        except TimeoutError:
            self._abandon(model, future)
            raise HeadraceError("loading", f"'{model.name}' was not there within {self._options.load_timeout:g} s.") from None
        except asyncio.CancelledError:
            self._abandon(model, future)
            raise

    def _abandon(self, model: ServedModel, future: asyncio.Future[Loaded]) -> None:
        """Nobody waits any more; if the model came in this very moment, its use ends here."""
        if future.done() and not future.cancelled() and future.exception() is None:
            self.release(model)

    async def _settled(self, model: ServedModel) -> None:
        if model.task is not None:
            await asyncio.shield(model.task)

    def _begin_load(self, model: ServedModel, delay: float = 0.0) -> None:
        model.state, model.error = "loading", None
        model.task = asyncio.get_running_loop().create_task(self._load(model, delay))

    async def _load(self, model: ServedModel, delay: float) -> None:
        try:
            if delay:
                await asyncio.sleep(delay)
            async with self._turn:
                settings = await self._settings_for(model)
                await model.open(settings, self._scheduling, lambda error: self._on_death(model, error))
        except HeadraceError as error:
            self._fail(model, error)
        except Exception:
            logger.exception("loading %s failed", model.name)
            self._fail(model, HeadraceError("internal_error", "loading failed because of a bug; the log has the trace"))
        else:
            self._arrived(model)

    def _arrived(self, model: ServedModel) -> None:
        if model.loaded is None or model.loaded.engine.dead is not None:  # it died in this very moment
            self._fail(model, HeadraceError("engine_dead", "the engine process has ended"))
            return
        model.state = "hot"
        model.hot_since = model.last_used = time.monotonic()
        ready = model.loaded.ready
        say(f"{model.name} is ready ({ready.load_seconds:.1f} s, {ready.pages_total} pages)")
        model.serve_queue()
        self._watch(model)
        self.on_arrival(model)

    def _fail(self, model: ServedModel, error: HeadraceError) -> None:
        model.counts.failures += 1
        model.state = "failed"
        model.retry_at = time.monotonic() + RETRY_SECONDS
        if self.alone and not self.opened:
            model.error = error
        else:
            model.error = HeadraceError("model_failed", f"'{model.name}' can't be loaded: {error.message}", param="model")
            say(model.error.message)
        model.fail_queue(model.error)

    def _on_death(self, model: ServedModel, error: HeadraceError) -> None:
        if self.alone:
            self.dead = error
            self._died.set()
            return
        if model.state != "hot":
            return
        model.counts.crashes += 1
        delay = model.back_off.after(time.monotonic() - model.hot_since)
        say(f"the engine of {model.name} has ended ({error.message}); it starts again in {delay:g} s")
        model.forget_engine()
        self._begin_load(model, delay)

    async def died(self) -> HeadraceError:
        """Wait until the engine of an only model dies; why."""
        await self._died.wait()
        assert self.dead is not None
        return self.dead

    def _begin_leaving(self, model: ServedModel) -> None:
        model.state = "leaving"
        model.task = asyncio.get_running_loop().create_task(self._leave(model))

    async def _leave(self, model: ServedModel) -> None:
        await model.unused.wait()
        try:
            await model.close()
        finally:
            model.counts.unloads += 1
            model.state = "cold"
        say(f"{model.name} has left the memory")
        if model.waiting and not self._closing:
            self._begin_load(model)

    def _watch(self, model: ServedModel) -> None:
        """Start the clock of an idle model."""
        timer = self._timers.pop(model.name, None)
        if timer is not None:
            timer.cancel()
        if model.state == "hot" and not model.users and model.keep >= 0 and not model.pinned and not self._closing:
            loop = asyncio.get_running_loop()
            self._timers[model.name] = loop.call_later(model.keep, self._idle_too_long, model, model.last_used)

    def _idle_too_long(self, model: ServedModel, last_used: float) -> None:
        if model.state == "hot" and not model.users and model.last_used == last_used and not self._closing:
            self._begin_leaving(model)

    async def _settings_for(self, model: ServedModel) -> EngineSettings:
        """What the engine is told, after whoever must leave has left. Raises ``model_failed`` when it never fits."""
        settings = dataclasses.replace(self._engine, model=model.entry.source)
        if self.alone and (len(self._options.roles) == 1 or self._options.joining is not None):
            return settings
        if model.need is None:
            await self._survey(again=model)
        need, room = model.need, self._room
        assert need is not None
        assert room is not None
        held = [
            Held(other.name, other.need.total, other.pinned or other.state == "loading", other.users > 0, other.last_used)
            for other in self.models
            if other is not model and other.in_memory and other.need is not None and other.loaded is not None
        ]
        leaving = who_leaves(need.total, room, held)
        if leaving is None and self.alone:
            message = f"{len(self._options.roles)} instances need {need.total >> 20:,} MiB of the {room >> 20:,} MiB that there are"
            raise HeadraceError("invalid_setting", f"{message}: choose fewer, or a smaller pool_mib", param="instances")
        if leaving is None:
            kept = ", ".join(one.name for one in held if one.pinned)
            message = f"it needs {need.total >> 20:,} MiB of the {room >> 20:,} MiB that models may take"
            raise HeadraceError("model_failed", message + (f", beside what is pinned: {kept}" if kept else ""))
        if leaving:
            say(f"{model.name} needs {need.total >> 20:,} MiB: {', '.join(leaving)} must leave")
        for name in leaving:
            await self._make_leave(self._by_name[name])
        model.lending = self.lender.terms(model) if self._may_lend else None
        return dataclasses.replace(settings, pool_mib=max(1, need.pages >> 20))

    @property
    def _may_lend(self) -> bool:
        """Pages change hands where one native engine has one pool: not with a draft model's beside it, nor with instances."""
        from headrace.speculation.proposers import choose_proposers

        drafting = choose_proposers(self._engine.speculation).draft
        return len(self._options.roles) == 1 and self._engine.device == "cpu" and not drafting

    async def _make_leave(self, model: ServedModel) -> None:
        if model.state == "hot":
            self._begin_leaving(model)
        if model.state == "leaving":
            await self._settled(model)

    async def _survey(self, again: ServedModel | None = None) -> None:
        """Look at every model's file once, and print what fits together; a file that can't be read fails its model alone."""
        from headrace.engine.machine import free_memory
        from headrace.engine.pool_size import default_pool_bytes

        if self._room is None:
            limit = self._options.memory_mib
            self._room = limit * 2**20 if limit is not None else free_memory()
        wanted = [again] if again is not None else [model for model in self.models if model.need is None]
        for model in wanted:
            try:
                self._needs[model.name], model.context_length = await asyncio.to_thread(
                    _look_at, model.entry, self._engine, len(self._options.roles)
                )
            except HeadraceError as error:
                if again is not None:
                    raise
                self._fail(model, error)
        total = self._engine.pool_mib * 2**20 if self._engine.pool_mib is not None else default_pool_bytes()
        parts = split_pool({name: need.pages for name, need in self._needs.items()}, total)
        needs = {name: dataclasses.replace(need, pages=parts[name]) for name, need in self._needs.items()}
        for model in self.models:
            if model.name in needs and (model.need is None or not model.in_memory or model.loaded is None):
                model.need = needs[model.name]
        self.lender.plan(needs, self._room, sum(parts.values()))
        for line in describe(needs, self._room):
            say(line)


def _look_at(entry: Entry, settings: EngineSettings, instances: int) -> tuple[Need, int]:
    """What a model would take with a pool of the size it wants, and its context length. Blocks."""
    from headrace.engine.drafting_model import draft_bytes
    from headrace.engine.pool_size import context_length, kv_format, page_bytes, wanted_pages
    from headrace.models.catalog import find_model, open_model

    card = find_model(entry.source)
    opened = open_model(card)
    context = context_length(opened.config, settings)
    wanted = wanted_pages(context)
    size = page_bytes(opened.config, kv_format(settings.kv, settings.device))
    pages = wanted * size
    weights = card.size_bytes
    if drafted := draft_bytes(settings, wanted):
        weights, pages = weights + drafted[0], pages + drafted[1]
    return Need(weights, pages, process_bytes(opened.config.vocab, instances), size), context  # instances map the same weights


def printable(text: str) -> str:
    """A client's own text, cut short and without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:64])
