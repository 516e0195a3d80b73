"""One served model as its handlers see it, with what it shares with the others."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from headrace.engine.client import EngineClient
from headrace.engine.wire import AdapterUse
from headrace.server.adapter_choice import Choice
from headrace.server.language import Language
from headrace.server.metrics import Metrics
from headrace.server.rate_limits import Claim, RateLimits
from headrace.server.served_model import Loaded
from headrace.server.settings import ServerSettings
from headrace.server.tenants import Tenants

if TYPE_CHECKING:
    from headrace.server.hub import Hub


class Service:
    """What handlers of one request use: valid while the model is held in memory for them. ``adapters``: for its submits.

    ``adapter_counts``: the metrics of each of them.
    """

    def __init__(self, hub: Hub, choice: Choice, loaded: Loaded, adapters: list[AdapterUse]) -> None:
        self._hub = hub
        self._choice = choice
        self.adapters = adapters
        self.adapter_counts = hub.metrics.adapters.of(choice.model.name, [adapter.name for adapter, _ in choice.adapters])
        self.engine: EngineClient = loaded.engine
        self.language: Language = loaded.language

    @property
    def settings(self) -> ServerSettings:
        """The server's options."""
        return self._hub.settings

    @property
    def metrics(self) -> Metrics:
        """The server's metrics."""
        return self._hub.metrics

    @property
    def tenants(self) -> Tenants:
        """Who calls, and with what standing."""
        return self._hub.tenants

    @property
    def rate_limits(self) -> RateLimits:
        """The allowances of all tenants."""
        return self._hub.rate_limits

    @property
    def base_name(self) -> str:
        """The name of the model below any adapters: of those there are few, so that metrics may be labelled with it."""
        return self._choice.model.name

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self._choice.name

    def admitted(self, sequences: int, prompt_tokens: int, claim: Claim) -> AbstractContextManager[None]:
        """Hold room for so many sequences (see :meth:`headrace.server.hub.Hub.admitted`)."""
        return self._hub.admitted(sequences, prompt_tokens, claim)
