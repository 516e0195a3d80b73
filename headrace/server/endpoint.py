"""One operation of the API as a row of the router table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import ASGIApp

from headrace.server.rendering import ErrorBody

Handler = Callable[[Any, Any], Awaitable[ASGIApp]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation. ``versioned`` ones exist as ``/v1/x`` and ``/x``; ``event`` is the type of a stream's events.

    ``metered`` ones take from the key's requests and tokens a minute. ``probe``: answered whatever the server's state; others are
    refused while loading, draining or after a death. ``by_model``: the body, or without one the query, names the model
    that answers, and the handler gets its service; others get the hub. ``query``: the struct of what may stand
    behind the path. ``form``: the fields of a form body, which the handler reads by itself. ``refusal``: the body of its refusals.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    event: Any = None
    versioned: bool = True
    probe: bool = False
    metered: bool = False
    by_model: bool = False
    query: type[msgspec.Struct] | None = None
    form: type[msgspec.Struct] | None = None
    refusal: type[msgspec.Struct] = ErrorBody

    @property
    def paths(self) -> tuple[str, ...]:
        """The path with its alias."""
        return (f"/v1{self.path}", self.path) if self.versioned else (self.path,)
