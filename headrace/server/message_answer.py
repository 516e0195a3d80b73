"""Answers of the Messages API, whole or as typed events, made from a generation's pieces."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.server.generation import Generation, Piece
from headrace.server.identity import new_id
from headrace.server.protocol.messages import (
    BlockDelta,
    BlockStart,
    BlockStop,
    InputPiece,
    MessageAnswer,
    MessageDelta,
    MessageEnd,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    TextOut,
    TextPiece,
    ToolUseOut,
)
from headrace.server.rendering import encode_json, messages_error_body
from headrace.server.spoken import Spoken
from headrace.server.sse import StreamDialect
from headrace.text.tool_dialects import Dialect

MESSAGE_STREAM = StreamDialect(
    done=b"",
    keepalive=b'event: ping\ndata: {"type": "ping"}\n\n',
    error=lambda error: b"event: error\ndata: " + messages_error_body(error) + b"\n\n",
)
"""How streams of this API end, fail and wait."""


class MessageWriter:
    """Collects the pieces of one answer; gives events for a stream or the whole answer at the end.

    ``capped``: the context left less room than was asked for, which is then the reason when the answer fills it.
    """

    def __init__(self, model: str, generation: Generation, dialect: Dialect | None, *, capped: bool) -> None:
        self._model = model
        self._generation = generation
        self._spoken = Spoken(dialect)
        self._capped = capped
        self._id = new_id("msg")
        self._blocks: list[TextOut | ToolUseOut] = []
        self._open = False  # the last block may still grow
        self._begun = False
        self._reason: str | None = None
        self._stop: str | None = None

    def add(self, pieces: list[Piece]) -> None:
        """Take a turn's pieces for an answer in one piece."""
        for piece in pieces:
            for event in self._take(piece):
                if isinstance(event, BlockDelta):
                    self._blocks[event.index] = _grown(self._blocks[event.index], event)

    def events(self, pieces: list[Piece]) -> bytes:
        """A turn's events."""
        found: list[MessageEvent] = []
        for piece in pieces:
            if not self._begun:
                self._begun = True
                found.append(MessageStart(self._answer([])))
            found += self._take(piece)
        return b"".join(map(_event, found))

    def tail(self) -> bytes:
        """The reason, all tokens, and the end."""
        end = MessageEnd(self._reason or "end_turn", self._stop)
        return _event(MessageDelta(end, self._usage())) + _event(MessageStop())

    def whole(self) -> MessageAnswer:
        """The answer in one piece."""
        return self._answer([_finished(block) for block in self._blocks])

    def _answer(self, blocks: list[TextOut | ToolUseOut]) -> MessageAnswer:
        return MessageAnswer(
            id=self._id, model=self._model, content=blocks, stop_reason=self._reason, stop_sequence=self._stop, usage=self._usage()
        )

    def _usage(self) -> MessageUsage:
        totals = self._generation.totals
        return MessageUsage.of(totals.prompt, totals.completion, totals.cached)

    def _take(self, piece: Piece) -> Iterator[MessageEvent]:
        """What a piece does to the blocks."""
        delta = self._spoken.read(piece)
        if delta.content:
            if not self._open or not isinstance(self._blocks[-1], TextOut):
                yield from self._begin(TextOut(""))
            yield BlockDelta(len(self._blocks) - 1, TextPiece(delta.content))
        for call in delta.calls:
            if call.id is not None:
                yield from self._begin(ToolUseOut(call.id, call.name or "", {}))
            if call.arguments:
                yield BlockDelta(len(self._blocks) - 1, InputPiece(call.arguments))
        if piece.finish is not None:
            yield from self._end()
            self._stop = piece.stop
            self._reason = self._reason_of(piece)

    def _begin(self, block: TextOut | ToolUseOut) -> Iterator[MessageEvent]:
        yield from self._end()
        self._blocks.append(block)
        self._open = True
        yield BlockStart(len(self._blocks) - 1, block)

    def _end(self) -> Iterator[MessageEvent]:
        if self._open:
            self._open = False
            yield BlockStop(len(self._blocks) - 1)

    def _reason_of(self, piece: Piece) -> str:
        if piece.finish == "length":
            return "model_context_window_exceeded" if self._capped else "max_tokens"
        if piece.stop is not None:
            return "stop_sequence"
        return "tool_use" if self._spoken.has_calls else "end_turn"


def _event(body: MessageEvent) -> bytes:
    name = body.__struct_config__.tag
    assert isinstance(name, str)
    return b"event: " + name.encode() + b"\ndata: " + encode_json(body) + b"\n\n"


def _grown(block: TextOut | ToolUseOut, event: BlockDelta) -> TextOut | ToolUseOut:
    """The block with a piece added; a call's arguments are text until it is finished."""
    if isinstance(event.delta, TextPiece):
        assert isinstance(block, TextOut)
        return TextOut(block.text + event.delta.text)
    assert isinstance(block, ToolUseOut)
    so_far = bytes(block.input) if isinstance(block.input, msgspec.Raw) else b""
    return ToolUseOut(block.id, block.name, msgspec.Raw(so_far + event.delta.partial_json.encode()))


def _finished(block: TextOut | ToolUseOut) -> TextOut | ToolUseOut:
    """A call that was cut off has no arguments that could be read; its input is then empty."""
    if isinstance(block, ToolUseOut) and isinstance(block.input, msgspec.Raw):
        try:
            parsed = msgspec.json.decode(block.input)
        except msgspec.DecodeError:
            parsed = {}
        return ToolUseOut(block.id, block.name, parsed if isinstance(parsed, dict) else {})
    return block
