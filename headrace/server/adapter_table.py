"""The adapters of a server by name: which generation each name has, on which model, and whether its engine knows it yet.

Engines forget: they crash, and models leave memory. What is remembered here is enough to register every adapter again, lazily for
whoever asks and in one sweep after its model has come back. Generations are counted here, so that they mean the same afterwards.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from headrace.engine.client import EngineClient
from headrace.engine.wire import AdapterCard
from headrace.errors import HeadraceError
from headrace.server.adapter_roots import Place, check_name, signature_of
from headrace.server.model_table import ModelTable, printable
from headrace.server.notices import say
from headrace.server.served_model import ServedModel
from headrace.settings.nearest import suggestion

logger = logging.getLogger("headrace.server.adapters")

Result = TypeVar("Result")

MOST_KNOWN = 65_536
"""Adapters of one server."""
AT_ONCE = 32
"""Registrations under way in a sweep: enough to keep the engine's checker busy, few enough that a request's own comes soon."""
_NEIGHBOURS = 24  # names on either side in the alphabet that may be suggested
_PASSING = ("engine_dead", "loading", "draining", "model_failed")  # errors that say nothing about an adapter


@dataclass(slots=True, eq=False)
class ServedAdapter:
    """One generation of an adapter. ``card``: what its model's engine said of it; ``engine``: the one that knows it now.

    ``watched``: it came from a watched folder and goes with it. ``error``: why it could not be registered, or why the newest
    content of its folder could not.
    """

    name: str
    model: ServedModel
    place: Place
    generation: int
    pinned: bool = False
    watched: bool = False
    card: AdapterCard | None = None
    engine: EngineClient | None = None
    error: HeadraceError | None = None
    binding: asyncio.Task[AdapterCard] | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """An adapter that shall be served. ``expected``: the generation that has the name now (0: none)."""

    name: str
    model: ServedModel
    place: Place
    pinned: bool = False
    expected: int = 0


@dataclass(slots=True)
class _Slot:
    """One name on one model. Whoever changes what it holds has the lock."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    current: ServedAdapter | None = None
    users: int = 0


class AdapterTable:
    """All adapters of a server. Changes of one name happen one after the other; different names don't wait for each other."""

    def __init__(self, models: ModelTable) -> None:
        self._models = models
        self._slots: dict[tuple[str, str], _Slot] = {}
        self._last = 0
        self.version = 0  # grows with every change
        self._tasks: set[asyncio.Task[Any]] = set()
        models.on_arrival = self.arrived

    def __iter__(self) -> Iterator[ServedAdapter]:
        return (slot.current for slot in list(self._slots.values()) if slot.current is not None)

    def current(self, model: ServedModel, name: str) -> ServedAdapter | None:
        """The generation that new requests for that name get."""
        slot = self._slots.get((model.name, name))
        return slot.current if slot is not None else None

    def find(self, name: str, model: ServedModel | None = None, param: str = "lora_name") -> ServedAdapter:
        """The adapter of that name, alone or as ``model:name``. Raises ``adapter_not_found`` with the nearest there is."""
        found = self._named(name, model)
        if not found:
            where = f" of '{model.name}'" if model is not None else ""
            message = f"No adapter{where} is called '{printable(name)}'{self.nearest(name, model)}"
            raise HeadraceError("adapter_not_found", message, param=param)
        if len(found) > 1:
            full = " or ".join(f"'{one.model.name}:{name}'" for one in found)
            raise HeadraceError("invalid_value", f"several models have an adapter '{name}'; write {full}", param=param)
        return found[0]

    def check_expected(self, wanted: Wanted) -> None:
        """Raise ``adapter_conflict`` when another generation has the name than is expected."""
        _check_generation(self.current(wanted.model, wanted.name), wanted.name, wanted.expected)

    def nearest(self, name: str, model: ServedModel | None = None) -> str:
        """``"; did you mean 'x'?"`` or a point; looks at neighbours in the alphabet only, however many names there are."""
        names = sorted(one.name for one in self if model in (None, one.model))
        plain = name[:64].rpartition(":")[2] if model is None else name[:64]
        place = bisect.bisect(names, plain)
        near = names[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
        near += [] if model is not None else [one.name for one in self._models]
        return suggestion(plain, near) or "."

    def check_name(self, name: str) -> None:
        """Raise ``invalid_value`` for a name that can't be an adapter's here."""
        check_name(name)
        for model in self._models:
            if name in model.entry.names or any(name.startswith(f"{own}:") for own in model.entry.names):
                message = f"'{name}' is a name of the model '{model.name}' or begins with one; call the adapter something else"
                raise HeadraceError("invalid_value", message, param="lora_name")

    async def add(self, wanted: Wanted, engine: EngineClient) -> ServedAdapter:
        """Register a new generation at its model's engine, values and all. Raises ``adapter_conflict`` and what the engine says."""
        self.check_name(wanted.name)
        if len(self._slots) >= MOST_KNOWN:
            raise HeadraceError("invalid_value", f"a server has at most {MOST_KNOWN} adapters", param="lora_name")
        async with self._locked(wanted.model, wanted.name) as slot:
            _check_generation(slot.current, wanted.name, wanted.expected)
            made = self._make(wanted)
            made.card = await engine.register_adapter(wanted.name, str(wanted.place.folder), pin=wanted.pinned, check_values=True)
            made.engine = engine
            slot.current = made
        return made

    def know(self, wanted: Wanted) -> None:
        """Serve an adapter that this server has checked before; its engine is told when somebody asks, or when it comes."""
        slot = self._slots.setdefault((wanted.model.name, wanted.name), _Slot())
        if slot.current is None:
            slot.current = self._make(wanted)
            self.version += 1

    async def remove(self, adapter: ServedAdapter, expected: int | None = None) -> None:
        """Take its name away; who uses it keeps it. Raises ``adapter_not_found`` or ``adapter_conflict``."""
        async with self._locked(adapter.model, adapter.name) as slot:
            if slot.current is None:
                raise HeadraceError("adapter_not_found", f"No adapter is called '{adapter.name}' any more.", param="lora_name")
            if expected is not None:
                _check_generation(slot.current, adapter.name, expected)
            gone, slot.current = slot.current, None
            if gone.engine is not None:
                with suppress(HeadraceError):  # an engine that is gone or going has forgotten it anyway
                    await gone.engine.remove_adapter(gone.name)

    async def appear(self, wanted: Wanted) -> ServedAdapter | None:
        """A watched folder holds something new; what has its name from now on, ``None`` when that is none of the folder's.

        What is served already goes on until the new content has been checked, and stays when that is broken. A first content has
        its name at once: :meth:`tell` has it checked, or whoever asks for it. No model is brought into memory for it.
        """
        async with self._locked(wanted.model, wanted.name) as slot:
            former = slot.current
            if former is not None and not former.watched:
                say(f"adapter '{wanted.name}' was loaded by hand; the folder '{wanted.place.shown}' is left alone")
                return None
            made = self._make(wanted)
            made.watched = True
            engine = _engine_of(wanted.model)
            if former is not None and former.card is not None and engine is not None:
                try:
                    made.card = await engine.register_adapter(made.name, str(made.place.folder))
                    made.engine = engine
                except HeadraceError as error:
                    if error.code not in _PASSING:
                        _report(made, error)
                        former.error = made.error
                        return former
            slot.current = made
            return made

    async def tell(self, adapters: Iterable[ServedAdapter]) -> None:
        """Have engines that are there check these adapters, many at once; what is wrong is told to the operator."""
        room = asyncio.Semaphore(AT_ONCE)

        async def tell_one(adapter: ServedAdapter, engine: EngineClient) -> None:
            async with room:
                with suppress(HeadraceError):  # reported where it was raised
                    await self.bind(adapter, engine)

        engines = [(one, _engine_of(one.model)) for one in adapters]
        await asyncio.gather(*(tell_one(one, engine) for one, engine in engines if engine is not None))

    async def bind(self, adapter: ServedAdapter, engine: EngineClient) -> int:
        """The adapter's generation in that engine, which is told of it if need be. Raises why it can't be."""
        if adapter.engine is engine and adapter.card is not None:
            return adapter.card.generation
        if adapter.error is not None and adapter.engine is engine:
            raise adapter.error  # until its files change, it is as broken as it was
        if adapter.binding is None or adapter.binding.done():
            adapter.binding = self._begin(self._bind(adapter, engine))
        card = await asyncio.shield(adapter.binding)
        return card.generation

    async def _bind(self, adapter: ServedAdapter, engine: EngineClient) -> AdapterCard:
        async with self._locked(adapter.model, adapter.name) as slot:
            if adapter.engine is engine and adapter.card is not None:
                return adapter.card
            if slot.current is not adapter:
                raise HeadraceError("adapter_not_found", f"No adapter is called '{adapter.name}' any more.", param="model")
            try:
                if await asyncio.to_thread(signature_of, adapter.place.folder) != adapter.place.signature:
                    message = f"adapter '{adapter.name}' has changed since it was loaded; load it again"
                    raise HeadraceError("model_file", message, param="model")
                adapter.card = await engine.register_adapter(adapter.name, str(adapter.place.folder), pin=adapter.pinned)
            except HeadraceError as error:
                if error.code not in _PASSING:
                    adapter.engine = engine
                    _report(adapter, error)
                raise
            adapter.engine, adapter.error = engine, None
            return adapter.card

    def arrived(self, model: ServedModel) -> None:
        """A model has come into memory: its engine is told of all its adapters."""
        own = [one for one in self if one.model is model]
        if own:
            self._begin(self.tell(own))

    async def to_the_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do it even when the caller goes away: an engine must not be left with what is not known here."""
        return await asyncio.shield(self._begin(work))

    def _begin(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, HeadraceError):
            logger.error("work on adapters failed", exc_info=error)

    async def close(self) -> None:
        """Stop what is under way."""
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError, HeadraceError):
                await task

    def _named(self, name: str, model: ServedModel | None) -> list[ServedAdapter]:
        among = self._models.models if model is None else [model]
        found = [one for one in (self.current(own, name) for own in among) if one is not None]
        if not found and ":" in name:
            for own in among:
                for prefix in own.entry.names:
                    if name.startswith(f"{prefix}:"):
                        inner = self.current(own, name.removeprefix(f"{prefix}:"))
                        found += [inner] if inner is not None else []
        return found

    def _make(self, wanted: Wanted) -> ServedAdapter:
        self._last += 1
        return ServedAdapter(wanted.name, wanted.model, wanted.place, self._last, wanted.pinned)

    @asynccontextmanager
    async def _locked(self, model: ServedModel, name: str) -> AsyncIterator[_Slot]:
        key = model.name, name
        slot = self._slots.setdefault(key, _Slot())
        slot.users += 1
        try:
            async with slot.lock:
                yield slot
        finally:
            self.version += 1
            slot.users -= 1
            if slot.current is None and not slot.users:
                self._slots.pop(key, None)


def _engine_of(model: ServedModel) -> EngineClient | None:
    return model.loaded.engine if model.loaded is not None and model.state == "hot" else None


def _check_generation(current: ServedAdapter | None, name: str, expected: int) -> None:
    present = 0 if current is None else current.generation
    if present == expected:
        return
    if not expected:
        message = f"generation {present} has the name '{name}'; replace it with \"expected_generation\": {present}, or unload it"
    else:
        message = f"{f'generation {present}' if present else 'no adapter'} has the name '{name}', not generation {expected}"
    raise HeadraceError("adapter_conflict", message, param="expected_generation" if expected else "lora_name")


def _report(adapter: ServedAdapter, error: HeadraceError) -> None:
    """Keep why an adapter can't be served, and tell the operator once."""
    adapter.error = HeadraceError("model_file", f"adapter '{adapter.name}' can't be served: {error.message}", param="model")
    say(f"{adapter.error.message} ({adapter.place.shown})")
