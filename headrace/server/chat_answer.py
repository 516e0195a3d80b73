"""Answers of chat completions, whole or as chunks, made from the same pieces."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from headrace.engine.wire import TokenLogprob
from headrace.server.generation import Generation, Piece
from headrace.server.identity import fingerprint, new_id
from headrace.server.logprobs import chat_logprobs, prompt_logprobs, weight
from headrace.server.protocol.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    Delta,
    FunctionOut,
    ToolCallOut,
)
from headrace.server.protocol.usage import Usage
from headrace.server.service import Service
from headrace.server.spoken import Spoken
from headrace.server.sse import event
from headrace.server.stream_usage import StreamUsage
from headrace.text.tool_dialects import Dialect
from headrace.text.tool_stream import CallDelta, ToolDelta


@dataclass(slots=True)
class _Choice:
    """What is known of one choice so far."""

    spoken: Spoken
    text: str = ""
    calls: list[ToolCallOut] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str = "stop"
    begun: bool = False


class ChatAnswer:
    """Collects pieces of a call; gives events for a stream or the whole answer at the end."""

    def __init__(self, service: Service, body: ChatRequest, generation: Generation, dialect: Dialect | None) -> None:
        self._body = body
        self._model = service.model_name
        self._language = service.language
        self._generation = generation
        self._choices = [_Choice(Spoken(dialect)) for _ in range(body.n or 1)]
        self._prompt_logprobs: list[TokenLogprob] | None = None
        self._id = new_id("chatcmpl")
        self._created = int(time.time())
        self._usage = StreamUsage.of(generation, body.stream_options)

    def add(self, pieces: list[Piece]) -> None:
        """Take a turn's pieces for an answer in one piece."""
        for piece in pieces:
            choice = self._choices[piece.index]
            delta = _read(choice, piece)
            choice.text += delta.content
            for call in delta.calls:
                _gather(choice.calls, call)
            choice.logprobs += piece.logprobs or ()
            if piece.prompt_logprobs is not None:
                self._prompt_logprobs = piece.prompt_logprobs

    def events(self, pieces: list[Piece]) -> bytes:
        """A turn's events: role first, then text and calls, each finish in a chunk of its own."""
        data: list[bytes] = []
        for piece in pieces:
            choice = self._choices[piece.index]
            if not choice.begun:
                choice.begun = True
                data.append(self._event(ChunkChoice(piece.index, Delta(role="assistant", content=""))))
            delta = _read(choice, piece)
            if delta.content or piece.logprobs:
                logprobs = self._logprobs(piece.logprobs)
                data.append(self._event(ChunkChoice(piece.index, Delta(content=delta.content), logprobs)))
            data += [self._event(ChunkChoice(piece.index, Delta(tool_calls=[_call_chunk(call)]))) for call in delta.calls]
            if piece.finish is not None:
                data.append(self._event(ChunkChoice(piece.index, Delta(), finish_reason=choice.finish)))
        return b"".join(data)

    def tail(self) -> bytes:
        """The usage event, when it was asked for."""
        return event(self._chunk([], self._usage.now())) if self._usage.at_end else b""

    @property
    def weight(self) -> int:
        """What rendering the whole answer costs, in logprobs shown."""
        return sum(weight(choice.logprobs) for choice in self._choices) + weight(self._prompt_logprobs or [])

    def whole(self) -> ChatCompletion:
        """The answer in one piece."""
        known = self._prompt_logprobs
        prompt = self._generation.totals.prompt
        choices = [
            ChatChoice(index, _message(choice), self._logprobs(choice.logprobs), choice.finish)
            for index, choice in enumerate(self._choices)
        ]
        return ChatCompletion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=self._usage.now(),
            system_fingerprint=fingerprint(), service_tier=self._generation.tier,
            prompt_logprobs=msgspec.UNSET if known is None else prompt_logprobs(known, prompt, self._language),
        )  # fmt: skip

    def _logprobs(self, entries: list[TokenLogprob] | None) -> ChatLogprobs | None:
        return chat_logprobs(entries or [], self._language, self._body.top_logprobs or 0) if self._body.logprobs else None

    def _event(self, choice: ChunkChoice) -> bytes:
        return event(self._chunk([choice], self._usage.beside_text()))

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | msgspec.UnsetType | None) -> ChatChunk:
        return ChatChunk(
            id=self._id, created=self._created, model=self._model, choices=choices,
            system_fingerprint=fingerprint(), usage=usage, service_tier=self._generation.tier,
        )  # fmt: skip


def _read(choice: _Choice, piece: Piece) -> ToolDelta:
    """A piece's text as content and calls; sets the choice's finish reason when the piece ends it."""
    delta = choice.spoken.read(piece)
    if piece.finish is not None:
        choice.finish = "tool_calls" if piece.finish == "stop" and choice.spoken.has_calls else piece.finish
    return delta


def _call_chunk(call: CallDelta) -> ToolCallOut:
    """A piece of a call: id, type and name come once."""
    function = FunctionOut(call.name, call.arguments)
    return ToolCallOut(function, call.index, call.id, "function" if call.id is not None else None)


def _gather(calls: list[ToolCallOut], piece: CallDelta) -> None:
    """Add a piece to the whole calls."""
    if piece.id is not None:
        calls.append(ToolCallOut(FunctionOut(piece.name, piece.arguments), None, piece.id, "function"))
        return
    call = calls[piece.index]
    function = FunctionOut(call.function.name, (call.function.arguments or "") + piece.arguments)
    calls[piece.index] = msgspec.structs.replace(call, function=function)


def _message(choice: _Choice) -> AnswerMessage:
    if not choice.calls:
        return AnswerMessage(choice.text)
    return AnswerMessage(choice.text or None, tool_calls=choice.calls)
