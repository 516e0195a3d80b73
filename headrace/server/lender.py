"""Hands memory for pages from one model to another while both are in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from headrace.engine.lending_wire import Lending
from headrace.server.fit_plan import Need
from headrace.server.lending import Tenant, divide, floor_of
from headrace.server.served_model import ServedModel

LOOK_SECONDS = 0.05
"""Between looks at what models lack: short beside a request, long beside a step."""
_LEAST_PAGES = 16  # to ask for: single ones would be asked for again at once


class Lender:
    """One budget for the pages of all models of a server.

    Only where all models fit into memory together: then a model that comes never has to wait until somebody gives memory back.
    Models that are not in memory lend their part but for the floor.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = models
        self._budget = 0
        self._own: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._preemptions: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self.handed = 0  # times that pages changed hands

    def plan(self, needs: Mapping[str, Need], room: int, budget: int) -> None:
        """What all need is known (anew): lend only if it all fits."""
        together = sum(need.total for need in needs.values()) <= room
        self._own = {name: need.pages for name, need in needs.items()} if together and len(needs) > 1 else {}
        self._budget = budget

    def terms(self, model: ServedModel) -> Lending | None:
        """What an engine that starts now gets, and could get; ``None``: its part is fixed."""
        own = self._own.get(model.name)
        if own is None:
            return None
        others = [name for name in self._own if name != model.name]
        kept = sum(floor_of(self._own[name]) for name in others)
        self._told.pop(model.name, None)
        taken = sum(one.taken for one in self._tenants())
        absent = sum(floor_of(self._own[name]) for name in others if name not in self._told)
        first = max(floor_of(own), min(own, self._budget - taken - absent))
        self._told[model.name] = first
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look())
        return Lending(max(own, self._budget - kept), first)

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            tenants = self._tenants()
            absent = sum(floor_of(own) for name, own in self._own.items() if name not in self._told)
            for name, size in divide(tenants, self._budget - absent).items():
                model = next(one for one in self._models if one.name == name)
                if model.loaded is not None and model.state == "hot":
                    self._told[name] = size
                    self.handed += 1
                    model.loaded.engine.allow(size)

    def _tenants(self) -> list[Tenant]:
        """Those in memory as they are now; who has left is forgotten."""
        present = {one.name: one for one in self._models if one.in_memory}
        self._told = {name: told for name, told in self._told.items() if name in present}
        return [self._tenant(present[name]) for name in self._told]

    def _tenant(self, model: ServedModel) -> Tenant:
        own, told = self._own[model.name], self._told[model.name]
        most = self._budget - sum(floor_of(part) for name, part in self._own.items() if name != model.name)
        engine = model.loaded.engine if model.loaded is not None and model.state == "hot" else None
        gauges = engine.gauges if engine is not None else None
        if gauges is None or gauges.load is None or model.need is None:
            return Tenant(model.name, own, most, told, told, 0, 0, busy=True)
        page, load = model.need.page_bytes, gauges.load
        pressed = gauges.preemptions > self._preemptions.get(model.name, 0)
        self._preemptions[model.name] = gauges.preemptions
        lacking = gauges.waiting and (load.head_pages > load.available or not gauges.running)
        lacks = max(_LEAST_PAGES, load.queue_pages - load.available) if pressed or lacking else 0
        return Tenant(
            model.name, own, most, told, gauges.pages_total * page, gauges.pages_free * page, lacks * page, busy=model.users > 0
        )
