"""A choice's output as text and calls, however it was cut into pieces."""

from __future__ import annotations

from headrace.server.generation import Piece
from headrace.text.tool_dialects import Dialect
from headrace.text.tool_stream import ToolCallStream, ToolDelta


class Spoken:
    """Reads the pieces of one choice. ``dialect``: how calls are spelt in it, ``None``: it is plain text."""

    def __init__(self, dialect: Dialect | None) -> None:
        self._tools = ToolCallStream(dialect) if dialect is not None else None

    @property
    def has_calls(self) -> bool:
        """True when a call has begun."""
        return self._tools is not None and self._tools.calls > 0

    def read(self, piece: Piece) -> ToolDelta:
        """What a piece adds; the last one also gives what was held back."""
        if self._tools is None:
            return ToolDelta(piece.text)
        delta = self._tools.push(piece.text)
        if piece.finish is None:
            return delta
        last = self._tools.finish()
        return ToolDelta(delta.content + last.content, delta.calls + last.calls)
