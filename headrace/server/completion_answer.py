"""Answers of plain completions, whole or as chunks, made from the same pieces."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from headrace.engine.wire import TokenLogprob
from headrace.server.generation import Generation, Piece
from headrace.server.identity import fingerprint, new_id
from headrace.server.language import Language, Prompt
from headrace.server.logprobs import prompt_logprobs_out
from headrace.server.protocol.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from headrace.server.protocol.usage import Usage
from headrace.server.service import Service
from headrace.server.sse import event


@dataclass(slots=True)
class _Choice:
    """What is known of one choice so far. ``echoed`` is the length of the prompt that its text begins with."""

    prompt: int
    text: str = ""
    finish: str | None = None
    begun: bool = False
    total: float = 0.0
    count: int = 0
    echoed: int = 0
    logprobs: CompletionLogprobs | None = None


class CompletionAnswer:
    """Collects pieces of a call; gives events for a stream or the whole answer at the end."""

    def __init__(self, service: Service, body: CompletionRequest, prompts: list[Prompt], generation: Generation) -> None:
        self._body = body
        self._model = service.model_name
        self._language: Language = service.language
        self._generation = generation
        self._prompts = prompts
        self._per_prompt = body.best_of or body.n or 1
        self._choices = [_Choice(number // self._per_prompt) for number in range(len(prompts) * self._per_prompt)]
        self._prompt_logprobs: dict[int, list[TokenLogprob | None]] = {}
        self._id = new_id("cmpl")
        self._created = int(time.time())
        self._with_usage = bool(body.stream_options is not None and body.stream_options.include_usage)

    def add(self, pieces: list[Piece]) -> list[CompletionChoice]:
        """Take a turn's pieces; returns what each adds, for streams."""
        for piece in pieces:
            if piece.prompt_logprobs is not None:
                prompt = self._choices[piece.index].prompt
                missing = len(self._prompts[prompt].ids) - len(piece.prompt_logprobs)
                self._prompt_logprobs[prompt] = [*[None] * missing, *piece.prompt_logprobs]
        return [self._add(piece) for piece in pieces]

    def _add(self, piece: Piece) -> CompletionChoice:
        choice = self._choices[piece.index]
        text, logprobs = piece.text, None
        if self._body.logprobs is not None:
            logprobs = CompletionLogprobs([], [], [], [])
        if not choice.begun:
            choice.begun = True
            if self._body.echo:
                text = self._echo(choice, logprobs) + text
        choice.count += len(piece.tokens)
        for entry, offset in zip(piece.logprobs or (), piece.offsets, strict=bool(piece.logprobs)):
            choice.total += entry.logprob
            if logprobs is not None:
                self._append(logprobs, entry, entry.token, choice.echoed + offset)
        choice.text += text
        choice.finish = piece.finish
        if logprobs is not None:
            choice.logprobs = _joined(choice.logprobs, logprobs)
        return CompletionChoice(piece.index, text, logprobs, piece.finish)

    def _echo(self, choice: _Choice, logprobs: CompletionLogprobs | None) -> str:
        prompt = self._prompts[choice.prompt]
        text = prompt.text if prompt.text is not None else self._language.decode(prompt.ids)
        choice.echoed = len(text)
        if logprobs is not None:
            known = self._prompt_logprobs.get(choice.prompt) or [None] * len(prompt.ids)
            offsets = [piece.offset for piece in self._language.text_stream(()).push(prompt.ids).pieces]
            for token, entry, offset in zip(prompt.ids, known, offsets, strict=True):
                self._append(logprobs, entry, token, offset)
        return text

    def _append(self, into: CompletionLogprobs, entry: TokenLogprob | None, token: int, offset: int) -> None:
        into.tokens.append(self._language.token_text(token))
        into.token_logprobs.append(entry.logprob if entry is not None else None)
        top = None
        if entry is not None and self._body.logprobs:
            top = {self._language.token_text(other): logprob for other, logprob in entry.top[: self._body.logprobs]}
            top.setdefault(into.tokens[-1], entry.logprob)
        if into.top_logprobs is not None:
            into.top_logprobs.append(top)
        into.text_offset.append(offset)

    def events(self, pieces: list[Piece]) -> bytes:
        """A turn's events: text first, each finish in a chunk of its own."""
        data = b""
        for choice in self.add(pieces):
            finish = choice.finish_reason
            if choice.text or (choice.logprobs is not None and choice.logprobs.tokens):
                data += event(self._chunk([msgspec.structs.replace(choice, finish_reason=None)]))
            if finish is not None:
                data += event(self._chunk([CompletionChoice(choice.index, "", None, finish)]))
        return data

    def tail(self) -> bytes:
        """The usage event, when it was asked for."""
        if not self._with_usage:
            return b""
        return event(self._completion([], self._usage()))

    def whole(self) -> Completion:
        """The answer in one piece; of ``best_of`` candidates the best ``n`` by mean logprob."""
        kept: list[CompletionChoice] = []
        n = self._body.n or 1
        for number in range(len(self._prompts)):
            candidates = self._choices[number * self._per_prompt : (number + 1) * self._per_prompt]
            if n < self._per_prompt:
                candidates = sorted(candidates, key=lambda choice: -choice.total / max(1, choice.count))[:n]
            for choice in candidates:
                shown = CompletionChoice(len(kept), choice.text, choice.logprobs, choice.finish)
                if self._body.prompt_logprobs is not None:
                    known = self._prompt_logprobs.get(number, [])
                    shown = msgspec.structs.replace(shown, prompt_logprobs=prompt_logprobs_out(known, self._language))
                kept.append(shown)
        return self._completion(kept, self._usage())

    def _usage(self) -> Usage:
        totals = self._generation.totals
        return Usage.of(totals.prompt, totals.completion, totals.cached)

    def _chunk(self, choices: list[CompletionChoice]) -> Completion:
        return self._completion(choices, None if self._with_usage else msgspec.UNSET)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None) -> Completion:
        return Completion(
            id=self._id, created=self._created, model=self._model, choices=choices,
            system_fingerprint=fingerprint(), usage=usage,
        )  # fmt: skip


def _joined(first: CompletionLogprobs | None, second: CompletionLogprobs) -> CompletionLogprobs:
    if first is None:
        return second
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        [*(first.top_logprobs or ()), *(second.top_logprobs or ())],
        first.text_offset + second.text_offset,
    )
