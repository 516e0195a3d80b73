"""Token counts of a call, and which events of its stream carry them."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from headrace.server.generation import Generation
from headrace.server.protocol.common import StreamOptions
from headrace.server.protocol.usage import Usage


@dataclass(frozen=True, slots=True)
class StreamUsage:
    """``at_end``: an event of its own closes the stream with the counts. ``always``: each event tells them as they stand."""

    generation: Generation
    at_end: bool
    always: bool

    @classmethod
    def of(cls, generation: Generation, options: StreamOptions | None) -> StreamUsage:
        """As the call's ``stream_options`` say."""
        at_end = options is not None and bool(options.include_usage)
        return cls(generation, at_end, at_end and options is not None and bool(options.continuous_usage_stats))

    def now(self) -> Usage:
        """The counts so far."""
        totals = self.generation.totals
        return Usage.of(totals.prompt, totals.completion, totals.cached, totals.drafted, totals.accepted)

    def beside_text(self) -> Usage | msgspec.UnsetType | None:
        """What an event with text has as its ``usage``: the field is there (as null) once usage was asked for."""
        if self.always:
            return self.now()
        return None if self.at_end else msgspec.UNSET
