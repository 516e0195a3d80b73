"""Answers of plain completions, whole or as chunks, made from the same pieces."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from headrace.engine.wire import TokenLogprob
from headrace.server.generation import Generation, Piece
from headrace.server.identity import fingerprint, new_id
from headrace.server.language import Language, Prompt
from headrace.server.logprobs import prompt_logprobs, weight
from headrace.server.protocol.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from headrace.server.protocol.usage import Usage
from headrace.server.service import Service
from headrace.server.sse import event
from headrace.server.stream_usage import StreamUsage


@dataclass(slots=True)
class _Choice:
    """What is known of one choice so far. ``echoed`` is the length of the prompt that its text begins with."""

    prompt: int
    text: str = ""
    finish: str | None = None
    begun: bool = False
    echoed: int = 0
    entries: list[tuple[TokenLogprob, int]] = field(default_factory=list)


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
        self._prompt_logprobs: dict[int, list[TokenLogprob]] = {}
        self._id = new_id("cmpl")
        self._created = int(time.time())
        self._usage = StreamUsage.of(generation, body.stream_options)

    def add(self, pieces: list[Piece]) -> None:
        """Take a turn's pieces for an answer in one piece."""
        self._learn(pieces)
        for piece in pieces:
            choice = self._choices[piece.index]
            choice.text += piece.text
            choice.finish = piece.finish
            choice.entries += zip(piece.logprobs or (), piece.offsets, strict=bool(piece.logprobs))

    def _learn(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.prompt_logprobs is not None:
                self._prompt_logprobs[self._choices[piece.index].prompt] = piece.prompt_logprobs

    def _echoed(self, number: int) -> str:
        prompt = self._prompts[number]
        return prompt.text if prompt.text is not None else self._language.decode(prompt.ids)

    def _logprobs(self, choice: _Choice, entries: list[tuple[TokenLogprob, int]], echo: str | None) -> CompletionLogprobs | None:
        """Entries with their offsets as parallel lists, the prompt's tokens first when ``echo`` is its text."""
        if self._body.logprobs is None:
            return None
        found = CompletionLogprobs([], [], [], [])
        if echo is not None:
            ids = self._prompts[choice.prompt].ids
            known = self._prompt_logprobs.get(choice.prompt, [])
            offsets = [piece.offset for piece in self._language.text_stream(()).push(ids).pieces]
            for token, entry, offset in zip(ids, [*[None] * (len(ids) - len(known)), *known], offsets, strict=True):
                self._append(found, entry, token, offset)
            choice.echoed = len(echo)
        for entry, offset in entries:
            self._append(found, entry, entry.token, choice.echoed + offset)
        return found

    def _append(self, into: CompletionLogprobs, entry: TokenLogprob | None, token: int, offset: int) -> None:
        into.tokens.append(self._language.token_text(token))
        into.token_logprobs.append(entry.logprob if entry is not None else None)
        top = None
        if entry is not None and self._body.logprobs:
            top = {self._language.token_text(other): logprob for other, logprob in entry.top[: self._body.logprobs]}
            top.setdefault(into.tokens[-1], entry.logprob)
        into.top_logprobs.append(top)
        into.text_offset.append(offset)

    def events(self, pieces: list[Piece]) -> bytes:
        """A turn's events: text first, each finish in a chunk of its own."""
        self._learn(pieces)
        data: list[bytes] = []
        for piece in pieces:
            choice = self._choices[piece.index]
            echo = self._echoed(choice.prompt) if self._body.echo and not choice.begun else None
            choice.begun = True
            entries = list(zip(piece.logprobs or (), piece.offsets, strict=bool(piece.logprobs)))
            text = (echo or "") + piece.text
            if text or entries:
                data.append(event(self._chunk([CompletionChoice(piece.index, text, self._logprobs(choice, entries, echo))])))
            if piece.finish is not None:
                data.append(event(self._chunk([CompletionChoice(piece.index, "", None, piece.finish)])))
        return b"".join(data)

    def tail(self) -> bytes:
        """The usage event, when it was asked for."""
        if not self._usage.at_end:
            return b""
        return event(self._completion([], self._usage.now()))

    @property
    def weight(self) -> int:
        """What rendering the whole answer costs, in logprobs shown."""
        shown = sum(weight([entry for entry, _ in choice.entries]) for choice in self._choices)
        return shown + self._per_prompt * sum(map(weight, self._prompt_logprobs.values()))

    def whole(self) -> Completion:
        """The answer in one piece; of ``best_of`` candidates the best ``n`` by mean logprob."""
        kept: list[CompletionChoice] = []
        n = self._body.n or 1
        for number, prompt in enumerate(self._prompts):
            candidates = self._choices[number * self._per_prompt : (number + 1) * self._per_prompt]
            if n < self._per_prompt:
                candidates = sorted(candidates, key=lambda choice: -_mean(choice))[:n]
            scored = self._prompt_logprobs.get(number, []) if self._body.prompt_logprobs is not None else None
            known = msgspec.UNSET if scored is None else prompt_logprobs(scored, len(prompt.ids), self._language)
            echo = self._echoed(number) if self._body.echo else None
            for choice in candidates:
                logprobs = self._logprobs(choice, choice.entries, echo)
                kept.append(CompletionChoice(len(kept), (echo or "") + choice.text, logprobs, choice.finish, known))
        return self._completion(kept, self._usage.now())

    def _chunk(self, choices: list[CompletionChoice]) -> Completion:
        return self._completion(choices, self._usage.beside_text())

    def _completion(self, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None) -> Completion:
        return Completion(
            id=self._id, created=self._created, model=self._model, choices=choices,
            system_fingerprint=fingerprint(), usage=usage, service_tier=self._generation.tier,
        )  # fmt: skip


def _mean(choice: _Choice) -> float:
    return sum(entry.logprob for entry, _ in choice.entries) / max(1, len(choice.entries))
