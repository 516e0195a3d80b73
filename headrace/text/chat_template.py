"""Chat templates: messages to a prompt, sandboxed, limited in time and size, safe from forged special tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from headrace.errors import HeadraceError
from headrace.settings.nearest import suggestion
from headrace.text.marking import ROLES, MarkedText, Marker
from headrace.text.template_process import TemplateProcess
from headrace.text.template_worker import Call
from headrace.text.tokenizer import Tokenizer

MAX_TEMPLATE_BYTES = 256 * 1024
MAX_KWARG_CHARACTERS = 1000
# What the caller of a template fills in itself; a request can't override it.
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"})
_PROVIDED = frozenset({"raise_exception", "strftime_now", "range", "namespace", "dict", "lipsum", "cycler", "joiner"})
_CONTINUE = " "

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """``seconds``: the longest a render may take; ``characters``: the longest prompt it may make."""

    seconds: float = 0.8
    characters: int = 4_000_000


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is rendered.

    ``messages`` have ``role`` and ``content`` (text, a list of text parts, or ``None`` beside ``tool_calls``).
    ``continue_final``: the last message is left open, so that the model goes on with it.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fenced:
    """A rendered prompt in which ``begin`` and ``end`` stand around some messages' contents; ``nonce`` as in a marked text."""

    text: str
    nonce: str
    begin: str
    end: str


class ChatTemplate:
    """One model's chat template.

    ``source`` ``None``: the model has none and :func:`plain_turns` is used. Errors: ``HeadraceError("invalid_template")``
    when the template is too long, can't be compiled, refuses the messages or is late.
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer, limits: TemplateLimits | None = None) -> None:
        if source is not None and len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
            raise HeadraceError("invalid_template", f"the chat template is larger than {MAX_TEMPLATE_BYTES} bytes")
        self.source = source
        self._marker: Marker = tokenizer.marker
        self._tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
        self._limits = limits or TemplateLimits()
        self._process = None if source is None else TemplateProcess(source, seconds=self._limits.seconds)

    @property
    def is_fallback(self) -> bool:
        """True when the model has no template of its own."""
        return self._process is None

    @property
    def supports_tools(self) -> bool:
        """True when the template shows tools to the model itself."""
        return self._process is not None and "tools" in self._process.variables()

    def close(self) -> None:
        """End the worker process."""
        if self._process is not None:
            self._process.close()

    def render(self, conversation: Conversation) -> MarkedText:
        """The prompt, for :meth:`Tokenizer.encode_template`. Blocks up to the time limit: see :meth:`render_async`.

        Errors: ``invalid_value`` for messages of a wrong shape, ``unknown_parameter`` for a template argument that the
        template doesn't know, ``invalid_template`` for all that goes wrong inside it.
        """
        messages, kwargs = self._checked(conversation)
        nonce = self._marker.choose_nonce(messages, conversation.tools, kwargs, self.source or "")
        marked = self._marker.mark(messages, nonce)
        end = ""
        if conversation.continue_final:
            end = self._marker.choose_nonce(messages, conversation.tools, kwargs, self.source or "", nonce)
            marked[-1]["content"] = (marked[-1].get("content") or "") + end + _CONTINUE
        text = self._text(conversation, marked, kwargs, nonce, open_end=bool(end))
        return MarkedText(_cut(text, end) if end else text, nonce)

    def render_fenced(self, conversation: Conversation, fenced: Collection[int], *, trimmed: bool) -> Fenced:
        """The prompt with the contents of some messages between two characters that occur nowhere else.

        ``trimmed``: without the white space at both ends of these contents. A template may treat a fenced content differently:
        compare with :meth:`render`. Errors as there.
        """
        messages, kwargs = self._checked(conversation)
        taken = (messages, conversation.tools, kwargs, self.source or "")
        nonce = self._marker.choose_nonce(*taken)
        begin = self._marker.choose_nonce(*taken, nonce)
        end = self._marker.choose_nonce(*taken, nonce, begin)
        marked = self._marker.mark(messages, nonce)
        for index in fenced:
            content = marked[index].get("content") or ""
            core = content.strip() if trimmed else content
            lead = content[: len(content) - len(content.lstrip())] if trimmed else ""
            marked[index]["content"] = lead + begin + core + end + content[len(lead) + len(core) :]
        return Fenced(self._text(conversation, marked, kwargs, nonce, open_end=False), nonce, begin, end)

    def _checked(self, conversation: Conversation) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The messages and arguments, both as templates get them."""
        messages = [_checked(message, index) for index, message in enumerate(conversation.messages)]
        if not messages:
            raise HeadraceError("invalid_value", "messages must not be empty", param="messages")
        return messages, self._check_kwargs(conversation.kwargs)

    def _text(
        self, conversation: Conversation, marked: list[dict[str, Any]], kwargs: dict[str, Any], nonce: str, *, open_end: bool
    ) -> str:
        prompted = conversation.add_generation_prompt and not open_end
        if self._process is None:
            return plain_turns(marked, add_generation_prompt=prompted)
        variables = {
            **{name: self._marker.mark(value, nonce) for name, value in kwargs.items()},
            **self._tokens,
            "messages": marked,
            "tools": None if not conversation.tools else self._marker.mark(list(conversation.tools), nonce),
            "documents": None,
            "add_generation_prompt": prompted,
        }
        return self._process.render(Call(variables=variables, nonce=nonce, limit=self._limits.characters))

    async def render_async(self, conversation: Conversation) -> MarkedText:
        """:meth:`render` on a thread, so that a slow template never holds the event loop."""
        return await asyncio.to_thread(self.render, conversation)

    def _check_kwargs(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if not kwargs:
            return {}
        known = (frozenset() if self._process is None else self._process.variables()) - _RESERVED - _PROVIDED
        for name, value in kwargs.items():
            param = f"chat_template_kwargs.{name}"
            if name not in known:
                listed = ", ".join(sorted(known)) or "none"
                hint = suggestion(name, known)
                raise HeadraceError(
                    "unknown_parameter", f"the chat template takes no argument '{name}' (it takes: {listed}){hint}", param=param
                )
            if not isinstance(value, str | int | float | bool | None) or (
                isinstance(value, str) and len(value) > MAX_KWARG_CHARACTERS
            ):
                raise HeadraceError(
                    "invalid_value",
                    f"must be a number, a boolean, null or a text of at most {MAX_KWARG_CHARACTERS} characters",
                    param=param,
                )
        return dict(kwargs)


def plain_turns(messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The documented fallback for models without a template: one ``role: content`` turn a paragraph.

    ``User: Hello`` and an empty line, and so on, then ``Assistant:`` for the model to go on. Base models continue that
    as a dialogue; no special token is used.
    """
    turns = [f"{str(message['role']).capitalize()}: {message.get('content') or ''}" for message in messages]
    if add_generation_prompt:
        turns.append("Assistant:")
    return "\n\n".join(turns)


def _checked(message: Message, index: int) -> dict[str, Any]:
    """A copy with text parts joined; roles outside the list are refused, since templates write them as they are."""
    role = message.get("role")
    if role not in ROLES:
        hint = suggestion(role, ROLES) if isinstance(role, str) else ""
        raise HeadraceError("invalid_value", f"must be one of {', '.join(ROLES)}{hint}", param=f"messages.{index}.role")
    content = message.get("content")
    if isinstance(content, list | tuple):
        content = "".join(_part_text(part, f"messages.{index}.content.{at}") for at, part in enumerate(content))
    elif content is not None and not isinstance(content, str):
        raise HeadraceError("invalid_value", "must be a text or a list of text parts", param=f"messages.{index}.content")
    checked = {**message, "content": content}
    if isinstance(message.get("tool_calls"), list | tuple):
        checked["tool_calls"] = [_parsed_call(call) for call in message["tool_calls"]]
    return checked


def _parsed_call(call: Any) -> Any:
    """A tool call with its arguments as an object: the API sends them as JSON text, templates print an object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = msgspec.json.decode(function["arguments"])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _part_text(part: Any, param: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise HeadraceError("unsupported_parameter", "only parts of type 'text' can be used with this model", param=param)
    return str(part["text"])


def _cut(text: str, end: str) -> str:
    """The prompt up to the end of the message to be continued; trimmed where the template trims messages."""
    at = text.rfind(end)
    if at < 0:
        raise HeadraceError("invalid_template", "the chat template drops the final message, so it can't be continued")
    return text[:at] if text[at : at + 2] == end + _CONTINUE else text[:at].rstrip()
