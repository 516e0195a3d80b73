"""Adapters as the list of models shows them: what the server knows of each, and its state in its model's engine."""

from __future__ import annotations

import time

from msgspec import UNSET

from headrace.engine.client import EngineClient
from headrace.engine.wire import AdapterCard
from headrace.errors import HeadraceError
from headrace.server.adapter_table import AdapterTable, ServedAdapter
from headrace.server.protocol.tokens import ModelCard
from headrace.server.served_model import ServedModel

FRESH_SECONDS = 0.5
"""An engine is asked for its adapters no more often than this: with thousands the answer costs it milliseconds between steps."""

Live = dict[int, AdapterCard]
"""An engine's cards by its own generations."""


class AdapterCards:
    """Makes cards. ``created``: the time that they carry."""

    def __init__(self, table: AdapterTable, created: int) -> None:
        self._table = table
        self._created = created
        self._seen: dict[str, tuple[EngineClient, int, float, Live]] = {}

    async def of(self, model: ServedModel) -> list[ModelCard]:
        """The cards of a model's adapters, by name."""
        own = sorted((one for one in self._table if one.model is model), key=lambda one: one.name)
        if not own:
            return []
        live = await self._live(model)
        return [self._card(one, live) for one in own]

    async def card(self, adapter: ServedAdapter) -> ModelCard:
        """The card of one."""
        return self._card(adapter, await self._live(adapter.model))

    async def _live(self, model: ServedModel) -> Live:
        engine = model.loaded.engine if model.loaded is not None and model.state == "hot" else None
        if engine is None:
            return {}
        known, version, when, live = self._seen.get(model.name, (None, 0, 0.0, {}))
        if known is engine and version == self._table.version and time.monotonic() - when < FRESH_SECONDS:
            return live
        version = self._table.version
        try:
            live = {card.generation: card for card in await engine.list_adapters()}
        except HeadraceError:  # it has just gone
            return {}
        self._seen[model.name] = engine, version, time.monotonic(), live
        return live

    def _card(self, adapter: ServedAdapter, live: Live) -> ModelCard:
        facts = adapter.card
        now = live.get(facts.generation) if facts is not None and adapter.engine is _engine_of(adapter.model) else None
        failed = adapter.error is not None and now is None
        return ModelCard(
            id=adapter.name,
            created=self._created,
            root=adapter.place.shown,
            parent=adapter.model.name,
            max_model_len=adapter.model.context_length,
            state=now.state if now is not None else "failed" if failed else "waiting",
            error=adapter.error.message if adapter.error is not None else None,
            pinned=now.pinned if now is not None else adapter.pinned,
            in_use=now.waiting if now is not None else 0,
            memory_bytes=now.bytes if now is not None and now.state in ("resident", "pinned", "loading") else 0,
            generation=adapter.generation,
            rank=facts.rank if facts is not None else UNSET,
            modules=facts.modules if facts is not None else UNSET,
            bytes=facts.bytes if facts is not None else UNSET,
        )


def _engine_of(model: ServedModel) -> EngineClient | None:
    return model.loaded.engine if model.loaded is not None else None
