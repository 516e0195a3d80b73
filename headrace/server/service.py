"""The state of one running server: its engine, its model's text side, its limits, and whether it still takes requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.engine.client import EngineClient
from headrace.engine.wire import Ready
from headrace.errors import HeadraceError
from headrace.models.packages import aliases_of
from headrace.server.language import Language
from headrace.server.loop_lag import LoopLag
from headrace.server.metrics import Metrics
from headrace.server.rate_limits import Claim, RateLimits
from headrace.server.rendering import table_error
from headrace.server.settings import ServerSettings
from headrace.server.tenants import Tenants


class Service:
    """What handlers share. Created before the engine is up; :meth:`opened` is called when it is."""

    def __init__(self, settings: ServerSettings, engine: EngineClient, tenants: Tenants | None = None) -> None:
        self.settings = settings
        self.engine = engine
        self.tenants = tenants or Tenants()
        self.rate_limits = RateLimits(self.tenants.rules)
        self.lag = LoopLag(window=settings.lag_window)
        self.metrics = Metrics(lambda: engine.gauges, self.lag, lambda: engine.live)
        self.started = int(time.time())
        self.draining = False
        self._language: Language | None = None
        self._model_name = ""
        self._known_names: frozenset[str] = frozenset()
        self._weight = 0
        self._weights: dict[str, int] = {}  # of it, what each tenant has in flight
        self._idle = asyncio.Event()
        self._idle.set()

    def opened(self, ready: Ready, language: Language) -> None:
        """The engine has loaded; requests can be served from now on."""
        language.context_length = ready.context_length
        self._language = language
        self._model_name = self.settings.served_name or ready.model
        self._known_names = frozenset((self._model_name, *(() if self.settings.served_name else aliases_of(ready.model))))

    def check_open(self) -> None:
        """Raise ``draining``, ``engine_dead`` or ``loading`` when no request can be served now."""
        if self.engine.dead is not None:
            raise table_error("engine_dead")
        if self.draining:
            raise table_error("draining")
        if self.engine.ready is None or self._language is None:
            raise table_error("loading")

    @property
    def language(self) -> Language:
        """The model's text side. Raises ``loading`` before it is there."""
        if self._language is None:
            raise table_error("loading")
        return self._language

    @property
    def model_name(self) -> str:
        """Name of the served model."""
        return self._model_name

    def check_model(self, name: str | None) -> None:
        """Raise ``model_not_found`` for a name that is not served; no name means the served one, its short names too."""
        if name is not None and name not in self._known_names:
            message = f"The model '{_printable(name)}' does not exist here; '{self._model_name}' is served."
            raise HeadraceError("model_not_found", message, param="model")

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
            if self._is_full(sequences, tenant):
                raise table_error("queue_full")
        except HeadraceError:
            claim.drop()
            raise
        claim.settle(prompt_tokens)
        self._weight += sequences
        self._weights[tenant] = self._weights.get(tenant, 0) + sequences
        self._idle.clear()
        try:
            yield
        finally:
            self._weight -= sequences
            self._weights[tenant] -= sequences
            if not self._weights[tenant]:
                del self._weights[tenant]
            if not self._weight:
                self._idle.set()

    def _is_full(self, sequences: int, tenant: str) -> bool:
        most, own = self.settings.max_queue, self._weights.get(tenant, 0)
        if not self._weight or self._weight + sequences <= most:
            return False
        tenants = len(self._weights) + (own == 0)
        return tenants == 1 or own + sequences > most // tenants

    @property
    def in_flight(self) -> int:
        """Sequences admitted and not finished."""
        return self._weight

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    def closed(self) -> None:
        """Nothing will be served any more: give back threads."""
        if self._language is not None:
            self._language.close()


def _printable(text: str) -> str:
    """A client's own text, cut short and without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:64])
