"""One response as it grows: its items, its events in order, and the object that is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from headrace.engine.wire import TokenLogprob
from headrace.errors import HeadraceError
from headrace.server.generation import Piece, Totals
from headrace.server.identity import new_id
from headrace.server.language import Language
from headrace.server.logprobs import chat_logprobs
from headrace.server.protocol.responses import (
    CallItem,
    Incomplete,
    MessageItem,
    OutputItem,
    ResponseEvent,
    ResponseFault,
    ResponseObject,
    ResponseUsage,
    TextPart,
)
from headrace.server.rendering import encode_json
from headrace.server.spoken import Spoken
from headrace.text.tool_dialects import Dialect
from headrace.text.tool_stream import CallDelta


@dataclass(slots=True)
class _Text:
    """A message under way."""

    item_id: str
    text: str = ""
    entries: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    """A call under way."""

    item_id: str
    call_id: str
    name: str
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Voice:
    """How a model's output is read: its text, its calls, and how many alternatives of each token are wanted (``None``: none)."""

    language: Language
    dialect: Dialect | None
    top_logprobs: int | None


class ResponseWriter:
    """Takes pieces and makes events, numbered from 0 on; :attr:`response` is always what the response is now."""

    def __init__(self, response: ResponseObject, voice: Voice, totals: Totals) -> None:
        self.response = response
        self._voice = voice
        self._totals = totals
        self._spoken = Spoken(voice.dialect)
        self._open: _Text | _Call | None = None
        self._sequence = 0

    def begin(self) -> list[bytes]:
        """The first events: of a response that runs, or is queued."""
        kind = "response.queued" if self.response.status == "queued" else "response.in_progress"
        return [self._event("response.created", response=self.response), self._event(kind, response=self.response)]

    def add(self, pieces: list[Piece]) -> list[bytes]:
        """A turn's events."""
        events = []
        if self.response.status == "queued":
            self._set(status="in_progress")
            events.append(self._event("response.in_progress", response=self.response))
        return events + [event for piece in pieces for event in self._take(piece)]

    def fail(self, error: HeadraceError) -> bytes:
        """The end of a response that could not be finished."""
        self._set(status="failed", error=ResponseFault(error.code, error.message), usage=self._usage())
        return self._event("response.failed", response=self.response)

    def cancel(self) -> bytes:
        """The end of a response that nobody wants any more."""
        self._set(status="cancelled", usage=self._usage())
        return self._event("response.incomplete", response=self.response)

    def _take(self, piece: Piece) -> Iterator[bytes]:
        delta = self._spoken.read(piece)
        if delta.content or (piece.logprobs and not delta.calls):
            yield from self._text(delta.content, piece.logprobs or [])
        for call in delta.calls:
            yield from self._call(call)
        if piece.finish is not None:
            yield from self._close("incomplete" if piece.finish == "length" else "completed")
            yield self._end(piece.finish)

    def _text(self, text: str, entries: list[TokenLogprob]) -> Iterator[bytes]:
        if not isinstance(self._open, _Text):
            yield from self._close("completed")
            self._open = _Text(new_id("msg"))
            yield self._event("response.output_item.added", output_index=self._index, item=self._item("in_progress"))
            yield self._part("response.content_part.added", part=TextPart(""))
        self._open.text += text
        self._open.entries += entries
        yield self._part("response.output_text.delta", delta=text, logprobs=self._logprobs(entries))

    def _call(self, call: CallDelta) -> Iterator[bytes]:
        if call.id is not None:
            yield from self._close("completed")
            self._open = _Call(new_id("fc"), call.id, call.name or "")
            yield self._event("response.output_item.added", output_index=self._index, item=self._item("in_progress"))
        assert isinstance(self._open, _Call)
        if call.arguments:
            self._open.arguments += call.arguments
            yield self._about("response.function_call_arguments.delta", delta=call.arguments)

    def _close(self, status: str) -> Iterator[bytes]:
        """The item under way is whole."""
        item = self._open
        if item is None:
            return
        if isinstance(item, _Text):
            part = TextPart(item.text, [], self._logprobs(item.entries))
            yield self._part("response.output_text.done", text=item.text, logprobs=part.logprobs)
            yield self._part("response.content_part.done", part=part)
        else:
            yield self._about("response.function_call_arguments.done", arguments=item.arguments, name=item.name)
        whole = self._item(status)
        yield self._event("response.output_item.done", output_index=self._index, item=whole)
        self._set(output=[*self.response.output, whole])
        self._open = None

    def _end(self, finish: str) -> bytes:
        now = int(time.time())
        if finish == "length":
            self._set(status="incomplete", incomplete_details=Incomplete("max_output_tokens"), usage=self._usage())
            return self._event("response.incomplete", response=self.response)
        self._set(status="completed", completed_at=now, usage=self._usage())
        return self._event("response.completed", response=self.response)

    @property
    def _index(self) -> int:
        return len(self.response.output)

    def _item(self, status: str) -> OutputItem:
        """The item under way as it is now; one that has just begun is empty."""
        item = self._open
        assert item is not None, "an item is under way"
        if isinstance(item, _Call):
            return CallItem(item.item_id, item.call_id, item.name, item.arguments, status)
        begun = status != "in_progress"
        return MessageItem(item.item_id, [TextPart(item.text, [], self._logprobs(item.entries))] if begun else [], status)

    def _part(self, kind: str, **fields: Any) -> bytes:
        return self._about(kind, content_index=0, **fields)

    def _about(self, kind: str, **fields: Any) -> bytes:
        assert self._open is not None, "an item is under way"
        return self._event(kind, item_id=self._open.item_id, output_index=self._index, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = ResponseEvent(type=kind, sequence_number=self._sequence, **fields)
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + encode_json(event) + b"\n\n"

    def _logprobs(self, entries: list[TokenLogprob]) -> Any:
        if self._voice.top_logprobs is None:
            return []
        return chat_logprobs(entries, self._voice.language, self._voice.top_logprobs).content

    def _usage(self) -> ResponseUsage:
        return ResponseUsage.of(self._totals.prompt, self._totals.completion, self._totals.cached)

    def _set(self, **changes: Any) -> None:
        self.response = msgspec.structs.replace(self.response, **changes)
