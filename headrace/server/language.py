"""The served model's text side: prompts to token ids away from the event loop, and tokens back to text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

from headrace.errors import HeadraceError
from headrace.models.catalog import find_model, open_model
from headrace.server.language_process import LanguageProcess, distant_tokenizer
from headrace.text.chat_template import ChatTemplate, Conversation
from headrace.text.marking import MarkedText
from headrace.text.open_tokenizer import open_tokenizer
from headrace.text.text_stream import TextStream
from headrace.text.tokenizer import Tokenizer

Result = TypeVar("Result")

_SLICE_CHARS = 32_768
_CUT_TOKENS = 64
ASIDE_CHARS = 2048
"""Work on more characters than this leaves the event loop; below it the hand-over costs more than the work."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a call: its ids, its text when it came as text, and the path of its field."""

    ids: list[int]
    text: str | None
    param: str


class Language:
    """Tokenizer, template and their worker threads. ``context_length`` in tokens is set when the engine is ready.

    ``makes_vectors``: the model was made for that. ``process``: holds the tokenizer, where that is not in this process; then
    all work with it is done on the worker threads.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, threads: int, process: LanguageProcess | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.context_length = 0
        self.makes_vectors = False
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="headrace-text")
        self._process = process
        self._longest = tokenizer.longest_token() if process is None else process.facts.longest

    def close(self) -> None:
        """Give the worker threads back."""
        self.template.close()
        if self._process is not None:
            self._process.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def aside(self, work: Callable[[], Result], size: int) -> Result:
        """Run ``work`` here when it is small, on a worker thread when it is not. ``size`` in characters or the like."""
        if size <= ASIDE_CHARS and self._process is None:
            return work()
        return await self.on_thread(work)

    async def on_thread(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` on a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def check_length(self, text_length: int, param: str) -> None:
        """Refuse a text that can't fit the context even if every token were the longest one: no work for hopeless prompts."""
        least = text_length // max(1, self._longest)
        if least > self.context_length:
            message = f"The text has more than {least:,} tokens; the model's context holds {self.context_length:,}."
            raise HeadraceError("context_length_exceeded", message, param=param)

    def beginning(self, text: str, tokens: int) -> str:
        """No more of a text than so many tokens can stand for, were each the longest one."""
        return text[: tokens * max(1, self._longest)]

    def check_tokens(self, texts: Iterable[str], param: str) -> None:
        """Refuse texts that together have more tokens than the context, slice by slice: blocks, but never long at once.

        Making and dropping one huge encoding would hold the interpreter. A cut adds a few tokens at its place at most.
        """
        count = 0
        for text in texts:
            if len(text) <= _SLICE_CHARS:
                continue
            for start in range(0, len(text), _SLICE_CHARS):
                count += max(0, len(self.tokenizer.encode(text[start : start + _SLICE_CHARS])) - _CUT_TOKENS)
                if count > self.context_length:
                    message = f"The text has more than {count:,} tokens; the model's context holds {self.context_length:,}."
                    raise HeadraceError("context_length_exceeded", message, param=param)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Refuse ids outside the vocabulary."""
        vocab = self.tokenizer.vocab_size
        if ids and max(ids) >= vocab:
            place = next(place for place, token in enumerate(ids) if token >= vocab)
            raise HeadraceError("invalid_value", f"'{param}[{place}]' must be below {vocab:,}.", param=f"{param}[{place}]")

    async def prompts(
        self, given: str | Sequence[str | int | list[int]], param: str, most: int, *, whole: bool = False
    ) -> list[Prompt]:
        """The prompts of a field that is a text, texts, token ids, or lists of token ids. Raises ``invalid_value``.

        ``whole``: nothing will follow the texts (see :meth:`~headrace.text.tokenizer.Tokenizer.encode_whole`).
        """
        if isinstance(given, str):
            return await self._text_prompts([given], [param], whole=whole)
        kinds = set(map(type, given))
        if len(kinds) > 1:
            problem = f"'{param}' must hold only texts, only token ids, or only lists of token ids."
            raise HeadraceError("invalid_value", problem, param=param)
        if kinds == {int}:
            return [self._ids_prompt(cast(list[int], given), param)]
        if len(given) > most:
            raise HeadraceError("invalid_value", f"'{param}' has more than {most} entries.", param=param)
        places = [f"{param}[{index}]" for index in range(len(given))]
        if kinds == {str}:
            return await self._text_prompts(cast(list[str], given), places, whole=whole)
        return [self._ids_prompt(entry, place) for entry, place in zip(cast(list[list[int]], given), places, strict=True)]

    async def following(self, texts: Sequence[str], places: Sequence[str]) -> list[list[int]]:
        """The ids of texts that stand behind others. ``places``: the paths of their fields. Raises as :meth:`prompts`."""
        return await self._encoded(texts, places, self.tokenizer.encode)

    async def _text_prompts(self, texts: Sequence[str], places: Sequence[str], *, whole: bool) -> list[Prompt]:
        encode = self.tokenizer.encode_whole if whole else partial(self.tokenizer.encode, bos=True)
        found = [Prompt(*one) for one in zip(await self._encoded(texts, places, encode), texts, places, strict=True)]
        for prompt in found:
            if not prompt.ids:
                raise HeadraceError("invalid_value", f"'{prompt.param}' is empty.", param=prompt.param)
        return found

    async def _encoded(self, texts: Sequence[str], places: Sequence[str], encode: Callable[[str], list[int]]) -> list[list[int]]:
        """All of them as one piece of work: many small texts would hold the event loop as long as a large one."""
        for text, place in zip(texts, places, strict=True):
            self.check_length(len(text), place)

        def work() -> list[list[int]]:
            for text, place in zip(texts, places, strict=True):
                self.check_tokens([text], place)
            return [encode(text) for text in texts]

        return await self.aside(work, size=sum(map(len, texts)))

    def _ids_prompt(self, ids: list[int], param: str) -> Prompt:
        if not ids:
            raise HeadraceError("invalid_value", f"'{param}' is empty.", param=param)
        self.check_ids(ids, param)
        return Prompt(ids, None, param)

    def text_stream(self, stop: tuple[str, ...], keep_special: tuple[str, ...] = ()) -> TextStream:
        """A fresh text of one choice; special tokens named in ``keep_special`` show in it."""
        named = (self.tokenizer.id_of(name) for name in keep_special)
        return TextStream(self.tokenizer, stop, keep=[token for token in named if token is not None])

    def render(self, conversation: Conversation) -> Prompt:
        """The prompt of a conversation; ``text`` as people should see it. Blocks; raises ``invalid_template`` and the like."""
        marked = self.template.render(conversation)
        self.check_length(len(marked.text), "messages")
        return Prompt(self.tokenizer.encode_template(marked), marked.plain, "messages")

    def spans(self, text: str, *, parse_special: bool, bos: bool) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token of a text, in characters; with ``parse_special`` special-token strings count."""
        tokenizer = self.tokenizer
        found: list[tuple[int, int, int]] = []
        at = 0
        for piece in tokenizer.marker.split(MarkedText(text, nonce="")) if parse_special else [text]:
            if isinstance(piece, int):
                name = tokenizer.token_text(piece)
                at = text.index(name, at)
                found.append((piece, at, at + len(name)))
                at += len(name)
                continue
            at = text.index(piece, at)
            encoding = tokenizer.encode_with_offsets(piece)
            found += [(token, at + start, at + end) for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]
            at += len(piece)
        if (
            bos
            and tokenizer.add_bos
            and tokenizer.bos_id is not None
            and [token for token, _, _ in found[:1]] != [tokenizer.bos_id]
        ):
            found.insert(0, (tokenizer.bos_id, 0, 0))
        return found

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ids that start a text."""
        return self.tokenizer.decode(ids, skip_special=skip_special, continuation=False)

    def token_text(self, token: int) -> str:
        """A token as text for people."""
        return self.tokenizer.token_text(token)

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for."""
        return self.tokenizer.token_bytes(token)


def open_language(model: str, threads: int) -> Language:
    """Open the text side of a model by name or path. Raises ``model_not_found`` or ``model_file``.

    Other threads of this process hardly run while a large tokenizer is made: see :func:`open_language_apart`.
    """
    opened = open_model(find_model(model))
    tokenizer = open_tokenizer(opened.tokenizer_source)
    language = Language(tokenizer, ChatTemplate(opened.chat_template, tokenizer), threads)
    language.context_length = opened.config.context_length
    language.makes_vectors = opened.config.pooling is not None
    return language


def open_language_apart(model: str, threads: int) -> Language:
    """The same with the tokenizer in a process of its own, so that streams of other models go on meanwhile."""
    process = LanguageProcess(model)
    try:
        tokenizer = distant_tokenizer(process)
        language = Language(tokenizer, ChatTemplate(process.facts.chat_template, tokenizer), threads, process)
    except BaseException:
        process.close()
        raise
    language.context_length = process.facts.context_length
    language.makes_vectors = process.facts.makes_vectors
    return language
