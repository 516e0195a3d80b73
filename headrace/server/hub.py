"""The state of one running server: its models, its limits, its metrics, and whether it still takes requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from headrace.engine.wire import AdapterUse
from headrace.errors import ERROR_TABLE, HeadraceError
from headrace.server.adapter_cards import AdapterCards
from headrace.server.adapter_choice import choose
from headrace.server.adapter_roots import AdapterRoots
from headrace.server.adapter_table import AdapterTable
from headrace.server.adapter_watch import AdapterWatch
from headrace.server.console.doctor import MachineDoctor
from headrace.server.loop_lag import LoopLag
from headrace.server.metrics import Metrics
from headrace.server.model_table import ModelTable
from headrace.server.observing.exporter import SpanExporter
from headrace.server.protocol.common import AdapterScale
from headrace.server.rate_limits import Claim, RateLimits
from headrace.server.rendering import table_error
from headrace.server.service import Service
from headrace.server.settings import ServerSettings
from headrace.server.tenants import Tenants

if TYPE_CHECKING:
    from headrace.server.desk import Desk


class Hub:
    """What all models share. Handlers of one model get its :class:`~headrace.server.service.Service` from :meth:`use`."""

    def __init__(self, settings: ServerSettings, table: ModelTable, tenants: Tenants | None = None) -> None:
        self.settings = settings
        self.table = table
        self.tenants = tenants or Tenants()
        self.rate_limits = RateLimits(self.tenants.rules)
        self.lag = LoopLag(window=settings.lag_window)
        self.metrics = Metrics(table, self.lag)
        self.doctor = MachineDoctor()
        self.traces = SpanExporter(settings.otlp_endpoint) if settings.otlp_endpoint is not None else None
        self.metrics.traces.exporter = self.traces
        self.started = int(time.time())
        self.adapter_roots = AdapterRoots(settings.adapter_dir)
        self.adapters = AdapterTable(table)
        self.adapter_cards = AdapterCards(self.adapters, self.started)
        self.adapter_watch = AdapterWatch(self.adapters, table, self.adapter_roots)
        self.draining = False
        self.opened_desk: Desk | None = None
        self.no_desk = ERROR_TABLE["state_unavailable"].meaning
        self._weight = 0
        self._background = 0  # of it, what no client waits for
        self._weights: dict[str, int] = {}  # of it, what each tenant has in flight
        self._idle = asyncio.Event()
        self._idle.set()

    def check_open(self) -> None:
        """Raise ``draining`` or ``engine_dead`` when nothing can be served now, ``loading`` while an only model first loads."""
        if self.table.dead is not None:
            raise table_error("engine_dead")
        if self.draining:
            raise table_error("draining")
        if self.table.alone and not self.table.opened:
            raise table_error("loading")

    def check_ready(self) -> None:
        """Like :meth:`check_open`, and ``loading`` until every model that is wanted at start has been tried."""
        self.check_open()
        if not self.table.opened:
            raise table_error("loading")

    @asynccontextmanager
    async def use(
        self, name: str | None, keep: float | None = None, adapters: Sequence[AdapterScale] = ()
    ) -> AsyncIterator[Service]:
        """A model in memory, for as long as the block runs, with the adapters that its engine shall add.

        Raises what :meth:`ModelTable.use` and :func:`choose` raise, and why an adapter can't be registered.
        """
        if adapters or (name is not None and self.table.get(name) is None):
            await self.adapter_watch.first_look.wait()
        choice = choose(self.table, self.adapters, name, adapters)
        loaded = await self.table.use(choice.model, keep)
        try:
            uses = [AdapterUse(await self.adapters.bind(own, loaded.engine), scale) for own, scale in choice.adapters]
            yield Service(self, choice, loaded, uses)
        finally:
            self.table.release(choice.model)

    @contextmanager
    def admitted(self, sequences: int, prompt_tokens: int, claim: Claim) -> Iterator[None]:
        """Hold room for so many sequences while the block runs. Raises ``queue_full`` or ``rate_limit_exceeded``.

        ``claim``: what the call was let in with, before its prompt was known.

        A call that is larger than the whole limit runs when nothing else does, so that it is not refused for ever. When others
        have filled the queue, a tenant is still let in up to an equal part of it: nobody can shut the door on the others.
        """
        tenant = claim.tenant
        try:
            self.check_open()
            if not claim.background and self._is_full(sequences, tenant):
                raise table_error("queue_full")
        except HeadraceError:
            claim.drop()
            raise
        claim.settle(prompt_tokens)
        self._background += sequences if claim.background else 0
        self._weight += sequences
        self._weights[tenant] = self._weights.get(tenant, 0) + sequences
        self._idle.clear()
        try:
            yield
        finally:
            self._weight -= sequences
            self._background -= sequences if claim.background else 0
            self._weights[tenant] -= sequences
            if not self._weights[tenant]:
                del self._weights[tenant]
            if not self._weight:
                self._idle.set()

    def _is_full(self, sequences: int, tenant: str) -> bool:
        most, own = self.settings.max_queue, self._weights.get(tenant, 0)
        if not self.online or self.online + sequences <= most:
            return False
        tenants = len(self._weights) + (own == 0)
        return tenants == 1 or own + sequences > most // tenants

    def desk(self) -> Desk:
        """Files, batches and jobs. Raises ``state_unavailable`` where the server has no folder for them."""
        if self.opened_desk is None:
            raise HeadraceError("state_unavailable", self.no_desk)
        return self.opened_desk

    def drain(self) -> None:
        """Take nothing new from now on."""
        self.draining = True
        self.table.drain()

    @property
    def online(self) -> int:
        """Sequences in flight that clients wait for."""
        return self._weight - self._background

    @property
    def in_flight(self) -> int:
        """Sequences admitted and not finished."""
        return self._weight

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()
