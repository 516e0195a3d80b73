"""What a request came with, for whatever is noted of it on its way: its id, its trace, and the lives that began in it."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass, field

from headrace.server.observing.life import Life

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z")


@dataclass(frozen=True, slots=True)
class TraceParent:
    """Whose child a request is (W3C Trace Context): ids in hex. ``sampled``: whether its caller records it."""

    trace_id: str
    span_id: str
    sampled: bool


@dataclass(slots=True)
class Origin:
    """One HTTP request. ``span_id`` is that of the server's own span, in the caller's trace or in a new one.

    Work that goes on after the answer still knows its origin; the origin no longer gathers what that does.
    """

    request_id: str
    parent: TraceParent | None = None
    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))
    lives: list[Life] = field(default_factory=list)
    answered: bool = False

    @property
    def traceparent(self) -> str:
        """What a further call for this request would carry."""
        sampled = self.parent is None or self.parent.sampled
        return f"00-{self.trace_id}-{self.span_id}-{'01' if sampled else '00'}"


ORIGIN: ContextVar[Origin | None] = ContextVar("headrace.origin", default=None)
"""The request that the present task works for; set by the gate, so that nothing between it and the notes has to hand it on."""


def parse_traceparent(headers: list[tuple[bytes, bytes]]) -> TraceParent | None:
    """The caller's span, or ``None`` where the header is missing, given twice or not valid, which means a new trace."""
    values = [value for name, value in headers if name == b"traceparent"]
    match = _TRACEPARENT.match(values[0].decode("latin-1")) if len(values) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags = match.groups()
    further = len(values[0]) > 55  # version 00 has nothing behind the flags
    if version == "ff" or (version == "00" and further) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceParent(trace_id, span_id, bool(int(flags, 16) & 1))


def origin_of(request_id: str, headers: list[tuple[bytes, bytes]]) -> Origin:
    """The origin of a request that has just come."""
    parent = parse_traceparent(headers)
    return Origin(request_id) if parent is None else Origin(request_id, parent, parent.trace_id)
